"""Extractive question answering: find the span of a context that answers a question, or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.data.tables import Rows, split_of
from peftcls.tasks.answers import Answer, AnswerKind
from peftcls.tasks.auto_models import AutoModel
from peftcls.tasks.base import Feature, Task, pad, without_padding
from peftcls.tasks.qa_windows import (
    FLAGS,
    MIN_CONTEXT_TOKENS,
    encode_questions,
    padded_offsets,
)
from peftcls.tasks.spans import find_answers, gold_answers, is_empty_cell
from peftcls.tasks.text_encoding import (
    collate_texts,
    rows_from_texts,
    split_windows,
    text_problem,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from peftcls.engine.batch import Batch

MIN_THRESHOLD = 1e-6


@names_arguments
@dataclasses.dataclass(frozen=True, repr=False)
class ExtractiveQA(Task):
    """Finds the answer to a question in a context; trained on the answer's first and last token.

    A context that does not fit beside its question is read in windows. The probabilities of a row's
    ends are normalised over all of its windows (Clark & Gardner 2018, "Simple and Effective
    Multi-Paragraph Reading Comprehension", section 3.4), so that spans of different windows can be
    compared; padding, question and special tokens are never candidates.

    Args:
        question: the column with the question.
        context: the column with the text that holds the answer.
        answers: the column with the right answers: {"text": [...], "answer_start": [...]} as in
            SQuAD, a list of such objects, or a text that occurs once in the context; an empty list
            where there is no answer. Rows with an empty cell cannot be trained on.
        max_length: tokens of a window, question included.
        stride: tokens that two windows share, at most half of their room for the context; a longer
            answer may be whole in no window.
        max_answer_tokens: a longer span is never predicted.
        n_best: spans that are given with their probabilities.
        unanswerable: whether a question may have no answer; learnt from the training rows if not
            given.
        null_threshold: no answer is given if the probability that there is none is higher than
            this; fitted by `Trainer.calibrate`.

    Raises:
        ValueError: settings that are out of range.
    """

    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    max_length: int = 384
    stride: int = 128
    max_answer_tokens: int = 30
    n_best: int = 5
    unanswerable: bool | None = None
    null_threshold: float = 0.5

    monitor: ClassVar[str] = "f1"
    new_head: ClassVar[bool] = True
    auto_model = AutoModel("AutoModelForQuestionAnswering")
    peft_type: ClassVar[str] = "QUESTION_ANS"
    pipeline_tag: ClassVar[str] = "question-answering"
    place_columns: ClassVar[tuple[str, ...]] = ("title", "paragraph", "id")

    def __post_init__(self) -> None:
        check_argument_types(vars(self), ExtractiveQA)
        min_length = 2 * MIN_CONTEXT_TOKENS
        checks = [
            (
                self.max_length < min_length,
                f"max_length={self.max_length}: expected at least {min_length} tokens",
            ),
            (self.stride < 0, f"stride={self.stride}: expected at least 0"),
            (
                self.max_answer_tokens < 1,
                f"max_answer_tokens={self.max_answer_tokens}: expected at least 1",
            ),
            (self.n_best < 1, f"n_best={self.n_best}: expected at least 1"),
            (
                not 0 < self.null_threshold < 1,
                f"null_threshold={self.null_threshold}: expected a probability between 0 and 1",
            ),
        ]
        problems = [sentence for is_wrong, sentence in checks if is_wrong]
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        texts = [self.question, self.context]
        return [*texts, self.answers] if with_target else texts

    def learn(self, rows: Rows) -> Self:
        if self.unanswerable is not None:
            return self
        table = as_dataset(split_of(rows, "train"))
        require_columns(table, self.columns(with_target=True), "ExtractiveQA")
        answerable = self.answerable(table)
        if not any(answerable):
            raise RowError(
                f"no row of {source_name(table)} has an answer in column {self.answers!r}; "
                "expected rows to learn from."
            )
        return dataclasses.replace(self, unanswerable=not all(answerable))

    def answerable(self, rows: datasets.Dataset) -> list[bool]:
        """Whether each question has an answer; rows with an empty cell are left out.

        Raises:
            RowError: a cell holds neither answers nor an empty list.
        """
        answerable = []
        for number, value in zip(row_numbers(rows), each_cell(rows, self.answers), strict=True):
            if is_empty_cell(value):
                continue
            try:
                answerable.append(bool(gold_answers(value)))
            except ValueError as error:
                raise RowError(
                    f"row {number} of {source_name(rows)} {error} (column {self.answers!r})."
                ) from None
        return answerable

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "ExtractiveQA")
        unanswerable = not all(self.answerable(rows)) or self.unanswerable
        return dataclasses.replace(self, unanswerable=unanswerable, null_threshold=0.5)

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        problem = text_problem(row, self.columns(with_target=False))
        if problem or not with_target:
            return problem
        return self._answers_problem(row)

    def _answers_problem(self, row: Row) -> str | None:
        """What is wrong with the answers of a row, or None."""
        if is_empty_cell(row[self.answers]):
            return (
                f"has nothing in column {self.answers!r}; give the answer, or an empty list "
                "(in a SQuAD file is_impossible) where the context has none, or leave the row out"
            )
        try:
            golds = gold_answers(row[self.answers])
            find_answers(row[self.context], golds)
        except ValueError as error:
            return f"{error} (column {self.answers!r})"
        if not golds and not self.unanswerable:
            return (
                f"has no answer in column {self.answers!r}, while all training rows have one; add "
                "some without one to them (in Python, task.learn(rows) or unanswerable=True), "
                "or leave the row out"
            )
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        if "id" not in rows.column_names:
            return None
        seen: set[Any] = set()
        for question_id in rows["id"]:
            if question_id is not None and question_id in seen:
                return f"has the id {question_id!r} twice; give each question its own"
            seen.add(question_id)
        return None

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, self.columns(with_target=False))

    def text_of(self, row: Row) -> str:
        return f"{row[self.question]}\n{row[self.context]}"

    def gold_of(self, row: Row) -> tuple[str, ...]:
        texts = tuple(gold.text for gold in gold_answers(row[self.answers]))
        return texts or ("",)

    def split_key(self, row: Row) -> str:
        return str(row[self.context])

    @property
    def reads_windows(self) -> bool:
        return True

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        encoded = encode_questions(
            [row[self.question].strip() for row in rows],
            [row[self.context] for row in rows],
            tokenizer,
            max_length=self.max_length,
            stride=self.stride,
            context_column=self.context,
        )
        for row, windows in zip(rows, encoded, strict=True):
            if with_target:
                spans = find_answers(row[self.context], gold_answers(row[self.answers]))
                yield windows.training_feature(spans, self.answers, self.stride)
            else:
                yield {**windows.input_feature(), "context": row[self.context]}

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = collate_texts(features, tokenizer)
        windows = split_windows(features, FLAGS)
        for name in windows[0]:
            flags = [window[name] for window in windows]
            batch[name] = pad(flags, 0, tokenizer.padding_side).bool()
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        from peftcls.engine.head_logits import end_logits

        golds = (batch["starts"], batch["ends"])
        total = torch.zeros((), device=batch["starts"].device)
        for logits, gold in zip(end_logits(model, batch), golds, strict=True):
            losses = self._end_losses(logits, gold, batch)
            total = total.to(losses) + losses.sum() / 2
        return total

    def _end_losses(self, logits: torch.Tensor, gold: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Losses of one end of the answers, of shape (rows,).

        Args:
            logits: of shape (windows of all rows, tokens).
            gold: True at the right tokens, of the same shape.
            batch: the batch.
        """
        import torch

        from peftcls.engine.head_logits import row_of_windows
        from peftcls.tasks.span_search import row_logsumexp

        windows = batch["windows"]
        every = row_logsumexp(logits, batch["allowed"], windows)
        right = row_logsumexp(logits, gold, windows)
        if self.unanswerable:
            null = _null_logits(logits, batch)
            every = torch.logaddexp(every, null)
            row = row_of_windows(windows, len(gold))
            has_answer = torch.zeros(len(null), device=gold.device)
            has_answer = has_answer.index_add(0, row, gold.any(1).float())
            right = torch.where(has_answer > 0, right, null)
        return every - right

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        import torch

        from peftcls.engine.head_logits import end_logits

        logits = torch.stack(end_logits(model, batch), dim=-1)
        return self.decode_logits(logits, batch, features, tokenizer)

    def decode_logits(
        self,
        logits: torch.Tensor,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        from peftcls.tasks.span_search import best_spans

        start, end = logits.double().cpu().unbind(-1)
        flags = {name: batch[name].cpu() for name in ("allowed", "null", "windows")}
        null_logits = _null_logits(start, flags) + _null_logits(end, flags)
        answers = []
        first_window = 0
        for index, feature in enumerate(features):
            windows = slice(first_window, first_window + len(feature["windows"]))
            first_window = windows.stop
            context = feature["context"]
            spans, null_probability = best_spans(
                start[windows],
                end[windows],
                flags["allowed"][windows],
                padded_offsets(feature, start.shape[1], tokenizer.padding_side),
                context,
                float(null_logits[index]) if self.unanswerable else None,
                self.max_answer_tokens,
                self.n_best,
            )
            n_best = []
            for span in spans:
                text = context[span.start : span.end]
                n_best.append(
                    Answer(text=text, start=span.start, end=span.end, probability=span.probability)
                )
            answers.append(self._answer(tuple(n_best), null_probability))
        return answers

    def _answer(self, n_best: tuple[Answer, ...], null_probability: float) -> Answer:
        """The likeliest answer, or none."""
        if not n_best or null_probability > self.null_threshold:
            return Answer(
                text="",
                probability=null_probability,
                null_probability=null_probability,
                n_best=n_best,
            )
        return dataclasses.replace(
            n_best[0],
            null_probability=null_probability if self.unanswerable else None,
            n_best=n_best,
        )

    @property
    def answer_kind(self) -> AnswerKind:
        return "span"

    def fixed_columns(self) -> set[str]:
        return {self.question}

    def raw_logits(self, model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
        import torch

        from peftcls.engine.head_logits import end_logits

        logits = torch.stack(end_logits(model, batch), dim=-1)
        return without_padding(logits, batch["attention_mask"])

    def plain_logits(self, output: Any, batch: Batch) -> list[torch.Tensor]:
        import torch

        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        return without_padding(logits, batch["attention_mask"])

    def merge_remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        return [
            "transformers gives the logits of an answer's ends; "
            "windows and the choice of the best span are left to you."
        ]

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.SPAN_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        golds = [self.gold_of(row) for row in rows]
        return metrics.span_scores(golds, [answer.text or "" for answer in answers])

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        if not self.unanswerable or min_accuracy is not None:
            raise ValueError(
                "ExtractiveQA fits the threshold for giving no answer: it needs unanswerable=True, "
                "learnt from rows of which some have no answer, and takes no min_accuracy."
            )
        golds = [self.gold_of(row) for row in rows]
        if all(gold == ("",) for gold in golds):
            raise ValueError(
                "Cannot calibrate: no row has an answer. "
                "Use rows of which some have an answer and some have none."
            )
        answered_f1 = []
        silent_f1 = []
        for answer, gold in zip(answers, golds, strict=True):
            text = answer.n_best[0].text if answer.n_best else ""
            answered_f1.append(metrics.span_f1(text or "", gold))
            silent_f1.append(metrics.span_f1("", gold))
        null_probabilities = [float(answer.null_probability or 0.0) for answer in answers]
        threshold = _best_null_threshold(answered_f1, silent_f1, null_probabilities)
        return dataclasses.replace(self, null_threshold=threshold)


def _best_null_threshold(
    answered_f1: Sequence[float], silent_f1: Sequence[float], null_probabilities: Sequence[float]
) -> float:
    """The threshold on the probability of no answer that maximises the sum of F1.

    Args:
        answered_f1: of each row, if its likeliest span is given.
        silent_f1: of each row, if no answer is given.
        null_probabilities: the probability that a row has no answer.
    """
    order = sorted(range(len(null_probabilities)), key=lambda i: null_probabilities[i])
    total = sum(silent_f1)
    best = total
    threshold = 0.0
    # Answer the rows that are least likely to have no answer, one more each time.
    for rank, i in enumerate(order):
        total += answered_f1[i] - silent_f1[i]
        null = null_probabilities[i]
        next_null = 1.0
        if rank + 1 < len(order):
            next_null = null_probabilities[order[rank + 1]]
        # Of equally good thresholds, the one that answers more.
        if total >= best and next_null > null:
            best = total
            threshold = (null + next_null) / 2
    return min(max(threshold, MIN_THRESHOLD), 1 - MIN_THRESHOLD)


def _null_logits(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logits of there being no answer: means over each row's windows, of shape (rows,)."""
    from peftcls.engine.head_logits import mean_of_windows

    by_window = (logits * batch["null"]).sum(1, keepdim=True)
    return mean_of_windows(by_window, batch["windows"])[:, 0]
