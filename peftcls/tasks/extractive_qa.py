"""A question and a context get the place of the answer in the context, or none."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import datasets
import torch
from transformers import AutoModelForQuestionAnswering, BatchEncoding, PreTrainedTokenizerBase

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.data.reading import Row, RowError, as_dataset, require_columns, source_name
from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import end_logits, mean_of_windows, owners
from peftcls.tasks.base import Answer, Feature, Task, pad, token_limit
from peftcls.tasks.spans import (
    best_spans,
    find_answers,
    gold_answers,
    row_logsumexp,
    says_nothing,
)
from peftcls.tasks.text_encoding import (
    collate_texts,
    has_separator,
    rows_from_texts,
    split_windows,
    text_problem,
)

LEAST_CONTEXT_TOKENS = 16
FLAGS = ("allowed", "null", "starts", "ends")


@dataclasses.dataclass(frozen=True)
class ExtractiveQA(Task):
    """Finds the answer to a question in a context; trained on both of its ends.

    A context that does not fit beside its question is read in windows. The probabilities of a row's ends are normalised
    over all of its windows (Clark & Gardner 2018, "Simple and Effective Multi-Paragraph Reading Comprehension", section
    3.4), so that spans of different windows can be compared; padding, question and special tokens are never candidates.

    Args:
        question: the column with the question.
        context: the column with the text that holds the answer.
        answers: the column with the right answers: {"text": [...], "answer_start": [...]} as in SQuAD, a list of such
            objects, or a text that occurs once in the context; an empty list where there is no answer. An empty cell says
            nothing, and cannot be learnt from.
        max_length: tokens of a window, question included.
        stride: tokens that two windows share, at most half of their room for the context; a longer answer may be whole in
            no window.
        max_answer_tokens: a longer span is never predicted.
        n_best: spans that are given with their probabilities.
        unanswerable: whether a question may have no answer; learnt from the training rows unless given.
        null_threshold: the probability of there being no answer above which none is given; fitted by `Trainer.calibrate`.

    Raises:
        ValueError: settings that cannot be.
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
    auto_model: ClassVar[Any] = AutoModelForQuestionAnswering
    peft_type: ClassVar[str] = "QUESTION_ANS"
    place_columns: ClassVar[tuple[str, ...]] = ("title", "paragraph", "id")

    def __post_init__(self) -> None:
        check_argument_types(vars(self), ExtractiveQA)
        problems = []
        if self.max_length < 2 * LEAST_CONTEXT_TOKENS:
            problems.append(
                f"max_length={self.max_length}: expected at least {2 * LEAST_CONTEXT_TOKENS} tokens"
            )
        if self.stride < 0:
            problems.append(f"stride={self.stride}: expected at least 0")
        problems += [
            f"{name}={value}: expected at least 1"
            for name, value in (
                ("max_answer_tokens", self.max_answer_tokens),
                ("n_best", self.n_best),
            )
            if value < 1
        ]
        if not 0 < self.null_threshold < 1:
            problems.append(
                f"null_threshold={self.null_threshold}: expected a probability between 0 and 1"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        return [self.question, self.context, *([self.answers] if with_target else [])]

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Self:
        if self.unanswerable is not None:
            return self
        table = as_dataset(rows)
        require_columns(table, self.columns(with_target=True), "ExtractiveQA")
        answerable = self.answerable(table)
        if not any(answerable):
            raise RowError(
                f"no row of {source_name(table)} has an answer in column {self.answers!r}; expected rows to learn from."
            )
        return dataclasses.replace(self, unanswerable=not all(answerable))

    def answerable(self, rows: datasets.Dataset) -> list[bool]:
        """Whether there is an answer, for each row that says so or not. Raises RowError for a cell that holds something else."""
        found = []
        for number, value in enumerate(rows[self.answers], 1):
            try:
                found += [] if says_nothing(value) else [bool(gold_answers(value))]
            except ValueError as error:
                raise RowError(
                    f"row {number} of {source_name(rows)} {error} (column {self.answers!r})."
                ) from None
        return found

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "ExtractiveQA")
        return dataclasses.replace(
            self,
            unanswerable=not all(self.answerable(rows)) or self.unanswerable,
            null_threshold=0.5,
        )

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        if (problem := text_problem(row, self.columns(with_target=False))) or not with_target:
            return problem
        if says_nothing(row[self.answers]):
            return (
                f"has nothing in column {self.answers!r}; give the answer, or an empty list (in a SQuAD file is_impossible) where the "
                "context has none, or leave the row out"
            )
        try:
            golds = gold_answers(row[self.answers])
            find_answers(row[self.context], golds)
        except ValueError as error:
            return f"{error} (column {self.answers!r})"
        if not golds and not self.unanswerable:
            return (
                f"has no answer in column {self.answers!r}, while all rows that are learnt from have one; add some without one "
                "to them (in Python, task.learn(rows) or unanswerable=True), or leave the row out"
            )
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        if "id" in rows.column_names:
            seen: set[Any] = set()
            for identity in rows["id"]:
                if identity is not None and identity in seen:
                    return f"has the id {identity!r} twice; give each question its own"
                seen.add(identity)
        return None

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, self.columns(with_target=False))

    def text_of(self, row: Row) -> str:
        return f"{row[self.question]}\n{row[self.context]}"

    def gold_of(self, row: Row) -> tuple[str, ...]:
        return tuple(gold.text for gold in gold_answers(row[self.answers])) or ("",)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        questions, glue = (
            [row[self.question].strip() for row in rows],
            "" if has_separator(tokenizer) else "\n",
        )  # or the two run together
        special = tokenizer.num_special_tokens_to_add(pair=True)
        limit = token_limit(tokenizer, self.max_length) - (special == 0)
        rooms = [
            limit - special - len(ids)
            for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]
        ]
        strides = [
            min(self.stride, room // 2) if room >= LEAST_CONTEXT_TOKENS else None for room in rooms
        ]
        windows: dict[int, list[tuple[BatchEncoding, int]]] = {}
        for stride in {stride for stride in strides if stride is not None}:
            own = [place for place, found in enumerate(strides) if found == stride]
            encoded = tokenizer(
                [questions[place] for place in own],
                [glue + rows[place][self.context] for place in own],
                truncation="only_second",
                max_length=limit,
                return_offsets_mapping=True,
                stride=stride,
                return_overflowing_tokens=True,
            )
            for line, place in enumerate(encoded["overflow_to_sample_mapping"]):
                windows.setdefault(own[place], []).append((encoded, line))
        for place, row in enumerate(rows):
            if place not in windows:
                raise RowError(
                    f"has a question that leaves {max(rooms[place], 0)} of {limit} tokens for the context in column "
                    f"{self.context!r}, expected at least {LEAST_CONTEXT_TOKENS}; shorten it or raise max_length"
                )
            yield self._feature(
                row, windows[place], len(glue), tokenizer, limit, with_target=with_target
            )

    def _feature(
        self,
        row: Row,
        windows: Sequence[tuple[BatchEncoding, int]],
        glue: int,
        tokenizer: PreTrainedTokenizerBase,
        limit: int,
        *,
        with_target: bool,
    ) -> Feature:
        """A row's windows, each a line of what the tokenizer gave, with what may be an answer and what is one."""
        closed = (
            tokenizer.num_special_tokens_to_add(pair=True) > 0
        )  # else an end mark is set behind each window, for "no answer"
        spans = (
            find_answers(row[self.context], gold_answers(row[self.answers])) if with_target else []
        )
        feature: Feature = {
            "input_ids": [],
            "windows": [],
            "shortened": False,
            **{flag: [] for flag in FLAGS},
            "offsets": [],
        }
        if "token_type_ids" in windows[0][0]:
            feature["token_type_ids"] = [
                i for encoded, line in windows for i in encoded["token_type_ids"][line]
            ]
        for number, (encoded, line) in enumerate(windows):
            ids, parts = encoded["input_ids"][line], encoded.sequence_ids(line)
            if not closed:
                ids, parts = [*ids, int(tokenizer.eos_token_id or 0)], [*parts, None]
            places = [
                (max(a - glue, 0), b - glue) if part == 1 else (0, 0)
                for part, (a, b) in zip(
                    parts, [*encoded["offset_mapping"][line], (0, 0)], strict=False
                )
            ]
            allowed = [int(part == 1 and b > a) for part, (a, b) in zip(parts, places, strict=True)]
            ends = _ends(spans, places, allowed, first=number == 0, last=number + 1 == len(windows))
            cls = (
                ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else len(ids) - 1
            )
            feature["input_ids"] += ids
            feature["windows"].append(len(ids))
            feature["allowed"] += allowed
            feature["null"] += [int(i == cls) for i in range(len(ids))]
            feature["starts"] += [
                int(any(i == first for first, _ in ends)) for i in range(len(ids))
            ]
            feature["ends"] += [int(any(i == last for _, last in ends)) for i in range(len(ids))]
            feature["offsets"] += [place for pair in places for place in pair]
        if spans and not any(feature["starts"]):
            a, b = spans[0]
            raise RowError(
                f"has an answer of {b - a} characters in column {self.answers!r} that is whole in no window of "
                f"{limit} tokens; raise max_length, or stride (now {self.stride})"
            )
        if with_target:
            del feature["offsets"]
            feature["weight"] = 1.0
        else:
            feature["context"] = row[self.context]
            del feature["starts"], feature["ends"]
        return feature

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        flagged = split_windows(features, FLAGS)
        flags = {
            name: pad([line[name] for line in flagged], 0, tokenizer.padding_side).bool()
            for name in flagged[0]
        }
        return {**collate_texts(features, tokenizer), **flags}

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        total = torch.zeros((), device=batch["starts"].device)
        for logits, gold in zip(
            end_logits(model, batch), (batch["starts"], batch["ends"]), strict=True
        ):
            every, right = (
                row_logsumexp(logits, keep, batch["windows"]) for keep in (batch["allowed"], gold)
            )
            if self.unanswerable:
                null = _null(logits, batch)
                every = torch.logaddexp(every, null)
                answered = torch.zeros(len(null), device=gold.device).index_add(
                    0, owners(batch["windows"], len(gold)), gold.any(1).float()
                )
                right = torch.where(answered > 0, right, null)
            total = total.to(every) + (every - right).sum() / 2
        return total

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        start, end = (logits.double().cpu() for logits in end_logits(model, batch))
        allowed, marks = (
            batch["allowed"].cpu(),
            {name: batch[name].cpu() for name in ("null", "windows")},
        )
        nulls = _null(start, marks) + _null(end, marks)
        found, line = [], 0
        for number, feature in enumerate(features):
            lines = slice(line, line := line + len(feature["windows"]))
            offsets = _padded_offsets(feature, start.shape[1], tokenizer.padding_side)
            context = feature["context"]
            spans, null = best_spans(
                start[lines],
                end[lines],
                allowed[lines],
                offsets,
                context,
                float(nulls[number]) if self.unanswerable else None,
                self.max_answer_tokens,
                self.n_best,
            )
            best = tuple(
                Answer(
                    text=context[s.start : s.end],
                    start=s.start,
                    end=s.end,
                    probability=s.probability,
                )
                for s in spans
            )
            found.append(self._answer(best, null))
        return found

    def _answer(self, best: tuple[Answer, ...], null: float) -> Answer:
        if not best or null > self.null_threshold:
            return Answer(text="", probability=null, null_probability=null, n_best=best)
        return dataclasses.replace(
            best[0], null_probability=null if self.unanswerable else None, n_best=best
        )

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.SPAN_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        return metrics.span_scores(
            [self.gold_of(row) for row in rows], [a.text or "" for a in answers]
        )

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        if not self.unanswerable or min_accuracy is not None:
            raise ValueError(
                "ExtractiveQA fits the threshold for giving no answer: it needs unanswerable=True, learnt from rows of which "
                "some have no answer, and takes no min_accuracy."
            )
        gold, null = (
            [self.gold_of(row) for row in rows],
            [float(a.null_probability or 0.0) for a in answers],
        )
        said = [
            metrics.span_f1(a.n_best[0].text or "" if a.n_best else "", g)
            for a, g in zip(answers, gold, strict=True)
        ]
        if all(g == ("",) for g in gold):
            raise ValueError(
                "no row has an answer, and nothing says when to give one; calibrate with rows of both kinds."
            )
        silent = [metrics.span_f1("", g) for g in gold]
        order = sorted(range(len(null)), key=lambda i: null[i])
        best, threshold, total = sum(silent), 0.0, sum(silent)
        for place, i in enumerate(
            order
        ):  # answer the rows that are least likely to have no answer, one more each time
            total += said[i] - silent[i]
            above = null[order[place + 1]] if place + 1 < len(order) else 1.0
            if total >= best and above > null[i]:  # of equals the one that answers more
                best, threshold = total, (null[i] + above) / 2
        return dataclasses.replace(self, null_threshold=min(max(threshold, 1e-6), 1 - 1e-6))


def _ends(
    spans: Sequence[tuple[int, int]],
    places: Sequence[tuple[int, int]],
    allowed: Sequence[int],
    *,
    first: bool,
    last: bool,
) -> list[tuple[int, int]]:
    """The first and last token of each span that is whole in a window; `first` and `last` say which window it is."""
    own = [i for i, yes in enumerate(allowed) if yes]
    found = []
    for start, end in spans:
        inside = [i for i in own if places[i][1] > start and places[i][0] < end]
        if inside and (first or places[own[0]][0] <= start) and (last or places[own[-1]][1] >= end):
            found.append((inside[0], inside[-1]))
    return found


def _null(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logit of there being no answer: the mean over a row's windows, shape (rows,)."""
    return mean_of_windows((logits * batch["null"]).sum(1, keepdim=True), batch["windows"])[:, 0]


def _padded_offsets(feature: Feature, width: int, side: str) -> list[list[tuple[int, int]]]:
    flat, lines, start = feature["offsets"], [], 0
    for tokens in feature["windows"]:
        own = [(flat[2 * i], flat[2 * i + 1]) for i in range(start, start + tokens)]
        gap = [(0, 0)] * (width - tokens)
        lines.append([*own, *gap] if side == "right" else [*gap, *own])
        start += tokens
    return lines
