"""Instruction tuning: a causal LM answers a prompt with a text, or with one of a set of labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row, RowError, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.tasks.answers import Answer, AnswerKind
from peftcls.tasks.auto_models import AutoModel
from peftcls.tasks.base import Feature, Task, pad, pad_inputs, token_limit, without_padding
from peftcls.tasks.conversations import (
    EARLIER_TURNS,
    fit_conversation,
    text_of_conversation,
    turns_of,
    turns_problem,
    with_place_for_turns,
    write_turns,
)
from peftcls.tasks.decisions import PLAIN, Decisions, decisions_setting, fit_decisions
from peftcls.tasks.instruction_settings import answer_problems, lists_remark, template_problems
from peftcls.tasks.label_trie import LabelTrie, Tokens
from peftcls.tasks.labels import (
    TOO_FEW_LABELS,
    label_name,
    label_order,
    label_setting_problem,
    plain_labels,
)
from peftcls.tasks.list_cells import in_reading_order, joined, keywords_of
from peftcls.tasks.prompts import (
    lengths_problem,
    placeholders,
    prompt_remark,
    render,
    split_cue,
    supervised_positions,
    tokenize_labels,
    tokenize_with_answers,
)
from peftcls.tasks.text_encoding import what_is_no_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from peftcls.engine.batch import Batch

IGNORED_TARGET = -100
SAMPLES = 8
TEMPLATE = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


@names_arguments
@dataclasses.dataclass(frozen=True, repr=False)
class Instruction(Task):
    """Instruction tuning; only the answer's tokens are targets.

    Args:
        instruction: the column behind `{instruction}` in the template.
        input: the column behind `{input}`: the document, the only part that is ever shortened.
        output: the column with the answer.
        labels: the closed set of answers, at least two. If given, a prediction is one of them with
            its probability, computed from the model's likelihoods in one pass; otherwise the answer
            is generated.
        separator: of a list-like answer such as keywords (";"); the answer is then scored as a set,
            and learnt in the order in which the row's text has its parts.
        template: the prompt. `{instruction}` and `{input}` stand for the columns above, any other
            `{name}` for the column of that name, so a template can also hold the instruction
            itself. White space at its end is the beginning of the answer. Where a row has
            `earlier_turns`, a list of objects with role and content, they stand before the prompt.
        max_length: tokens of prompt and answer together.
        max_new_tokens: tokens of a generated answer, its end mark included.
        decisions: with `labels`, temperature, thresholds and abstention; fitted by
            `Trainer.calibrate`.
        samples: of a list-like answer: so many lists are drawn, and those keywords are the answer
            that at least two of them have; 8 unless given. With 1, it is the likeliest list.

    Raises:
        ValueError: settings that exclude each other or are out of range.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    labels: tuple[str, ...] | None = None
    separator: str | None = None
    template: str = TEMPLATE
    max_length: int = 1024
    max_new_tokens: int = 128
    decisions: Decisions = PLAIN
    samples: int | None = None

    new_head: ClassVar[bool] = False
    auto_model = AutoModel("AutoModelForCausalLM")
    peft_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    optional_columns: ClassVar[tuple[str, ...]] = (EARLIER_TURNS,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", plain_labels(self.labels))
        check_argument_types(vars(self), Instruction)
        object.__setattr__(self, "decisions", decisions_setting(self.decisions, self.labels))
        problems = []
        if self.labels is not None:
            problems.append(label_setting_problem(self.labels))
            object.__setattr__(self, "labels", tuple(label_name(label) for label in self.labels))
        problems += answer_problems(self.labels, self.separator, self.samples)
        problems += template_problems(self.template)
        lengths = (self.max_length, self.max_new_tokens)
        problems.append(lengths_problem(*lengths, generates=self.labels is None))
        sentences = [problem for problem in problems if problem]
        if sentences:
            raise ValueError("; ".join(sentences) + ".")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        # Folders from before there was this setting have one list.
        before = {"samples": 1} if fields.get("separator") is not None else {}
        return super().from_json({**before, **fields})

    def to_json(self) -> dict[str, Any]:
        fields = super().to_json()
        if self.separator is None:
            del fields["samples"]
        return fields

    @property
    def lists(self) -> int:
        """How many lists are drawn for a row; 1 also for an answer that is no list."""
        return 1 if self.separator is None else self.samples or SAMPLES

    def for_comparison(self) -> Self:
        # Rounding changes what is drawn.
        return self if self.lists == 1 else dataclasses.replace(self, samples=1)

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """The score that decides which step was best."""
        if self.labels:
            return "f1_macro"
        return "f1" if self.separator else "exact_match"

    def columns(self, *, with_target: bool) -> list[str]:
        names = {"instruction": self.instruction, "input": self.input}
        used = [names.get(name, name) for name in placeholders(self.template)]
        inputs = list(dict.fromkeys(used))
        return [*inputs, self.output] if with_target else inputs

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "Instruction")
        if not self.labels:
            return dataclasses.replace(self, decisions=PLAIN)
        new_labels = set()
        for number, value in zip(row_numbers(rows), each_cell(rows, self.output), strict=True):
            if isinstance(value, list | Mapping):
                raise RowError(f"row {number} of {source_name(rows)} {self._list_problem(value)}.")
            if value is not None:
                new_labels.add(label_name(value))
        new_labels -= {"", *self.labels}
        labels = (*self.labels, *label_order(new_labels))
        return dataclasses.replace(self, labels=labels, decisions=PLAIN)

    def _list_problem(self, value: Any) -> str:
        expected = "one label" if self.labels else "a text"
        if isinstance(value, Mapping):
            expected += "; write an object as a text, such as its JSON"
        elif not self.labels:
            expected += "; for several, set separator (--label-separator)"
        return f"has {str(value)[:80]} in column {self.output!r}, expected {expected}"

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        inputs = self.columns(with_target=False)
        # An instruction may say all that is to be done.
        if "{input}" in self.template and "{instruction}" not in self.template:
            inputs = [self.input]
        if inputs and not any(str(row[column] or "").strip() for column in inputs):
            return f"has no text in column {inputs[0]!r}; fill it in or leave the row out"
        problem = self._answer_problem(row[self.output]) if with_target else None
        return turns_problem(row) or problem

    def _answer_problem(self, answer: Any) -> str | None:
        """What is wrong with a cell of the answer's column."""
        if answer is None or not str(answer).strip():
            return f"has no answer in column {self.output!r}; fill it in or leave the row out"
        if self.separator is not None:
            return self._keywords_problem(answer, self.separator)
        if isinstance(answer, list | Mapping):
            return self._list_problem(answer)
        if self.labels and label_name(answer) not in self.labels:
            return f"has the label {label_name(answer)!r}, expected one of {list(self.labels)}"
        return None

    def _keywords_problem(self, answer: Any, separator: str) -> str | None:
        """What is wrong with a cell that holds a list, or a text with separators."""
        if isinstance(answer, Mapping):
            return self._list_problem(answer)
        if isinstance(answer, list):
            for part in answer:
                if not isinstance(part, str | None):
                    return f"has {part!r} in the list in column {self.output!r}, expected texts"
        if not keywords_of(answer, separator):
            return (
                f"has no answer in column {self.output!r} between its {separator!r}; "
                "fill it in or leave the row out"
            )
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        if not self.labels:
            return None
        names = {label_name(value) for value in each_cell(rows, self.output)}
        if len(names) < 2:
            return f"has only the label {sorted(names)} in column {self.output!r}; {TOO_FEW_LABELS}"
        return None

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        columns = self.columns(with_target=False)
        if columns != [self.input]:
            raise RowError(
                f"bare texts are not enough: the template needs the columns {columns}; "
                "give rows such as {'column': value}."
            )
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                found = what_is_no_text(text)
                raise RowError(f"text {number} of {len(texts)} is {found}, expected a text.")
        return [{self.input: text} for text in texts]

    def text_of(self, row: Row) -> str:
        return text_of_conversation(row, self.columns(with_target=False))

    def gold_of(self, row: Row) -> tuple[str, ...]:
        answer = row[self.output]
        if self.separator is not None:
            return keywords_of(answer, self.separator)
        if self.labels:
            return (label_name(answer),)
        return (str(answer).strip(),)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        cue, space = split_cue(with_place_for_turns(self.template))
        answer_limit = self._answer_limit(tokenizer)
        length_limit = token_limit(tokenizer, self.max_length)
        prompt_limit = length_limit - answer_limit
        values = [self._template_values(row, tokenizer) for row in rows]
        # Without a target, any text shows where the prompt's tokens end.
        answers = [self.labels[0] if self.labels else "x"] * len(rows)
        if with_target:
            answers = [self._target_text(row) for row in rows]
        answers = [space + answer for answer in answers]
        prompts = [render(cue, row_values) for row_values in values]
        pairs = list(zip(prompts, answers, strict=True))
        for index, (prompt_ids, answer_ids) in enumerate(tokenize_with_answers(tokenizer, pairs)):
            shortened = False
            if len(prompt_ids) > prompt_limit:
                # An answer to train on is there, with its end mark: no more room is kept free.
                has_answer = with_target and not self.labels
                room = length_limit - len(answer_ids) - 1 if has_answer else prompt_limit
                prompt, shortened = fit_conversation(
                    tokenizer, cue, values[index], turns_of(rows[index]), (prompt_limit, room)
                )
                pair = (prompt, answers[index])
                ((prompt_ids, answer_ids),) = tokenize_with_answers(tokenizer, [pair])
            if not with_target:
                yield {"input_ids": prompt_ids, "shortened": shortened}
                continue
            self._check_answer_tokens(answer_ids, rows[index], tokenizer, answer_limit)
            yield {
                "input_ids": [*prompt_ids, *answer_ids, int(tokenizer.eos_token_id)],
                "prompt_tokens": len(prompt_ids),
                "weight": float(len(answer_ids) + 1),
                "shortened": shortened,
            }

    def _answer_limit(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens that are left free for an answer and its end mark."""
        label_tokens = self.label_tokens(tokenizer)
        if not label_tokens:
            return self.max_new_tokens
        return max(len(tokens) for tokens in label_tokens) + 1

    def _template_values(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
        """The row by placeholder names."""
        return {
            **row,
            "instruction": row.get(self.instruction),
            "input": row.get(self.input),
            EARLIER_TURNS: write_turns(turns_of(row), tokenizer),
        }

    def _target_text(self, row: Row) -> str:
        """The answer as the model is trained to write it."""
        answer = row[self.output]
        if self.labels:
            return label_name(answer)
        if self.separator is not None:
            keywords = keywords_of(answer, self.separator)
            return joined(in_reading_order(keywords, self.text_of(row)), self.separator)
        return str(answer).strip()

    def _check_answer_tokens(
        self,
        answer_ids: Sequence[int],
        row: Row,
        tokenizer: PreTrainedTokenizerBase,
        answer_limit: int,
    ) -> None:
        """Raise a RowError for an answer that is too long or not the tokens of its label."""
        if self.labels:
            label = self._target_text(row)
            expected = self.label_tokens(tokenizer)[self.labels.index(label)]
            if tuple(answer_ids) != expected:
                raise RowError(
                    f"has the label {label!r}, which is tokenized differently after its prompt; "
                    "the template must end in a space or a new line"
                )
        if len(answer_ids) + 1 > answer_limit:
            raise RowError(
                f"has an answer of {len(answer_ids)} tokens in column {self.output!r}, "
                f"expected at most {answer_limit - 1}; "
                f"shorten it or raise max_new_tokens (now {self.max_new_tokens})"
            )

    def label_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
        """The tokens of each label, as they follow the prompt."""
        return tokenize_labels(self.template, self.labels or (), tokenizer, len(tokenizer))

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = pad_inputs(features, tokenizer)
        if "prompt_tokens" in features[0]:
            marks = [supervised_positions(feature) for feature in features]
            batch["supervised"] = pad(marks, 0, tokenizer.padding_side).bool()
        return batch

    def shared_tokens(self, model: torch.nn.Module, features: Sequence[Feature]) -> int:
        from peftcls.engine.prompt_logits import common_tokens

        rows = []
        for feature in features:
            ids = feature["input_ids"]
            prompt_tokens = feature.get("prompt_tokens", len(ids))
            rows.append((ids, prompt_tokens - 1))
        return common_tokens(model, rows)

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        from peftcls.engine.prompt_logits import Prompts

        supervised = batch["supervised"]
        next_ids = batch["input_ids"].roll(-1, dims=1)
        if supervised.dtype == torch.bool:
            targets = next_ids[supervised]
        else:
            # With fixed shapes, positions of shape (rows, positions); -1 where there is none.
            targets = next_ids.gather(1, supervised.clamp(min=0))
            targets = targets.masked_fill(supervised < 0, IGNORED_TARGET).flatten()
        prompts = Prompts(model, batch["input_ids"], batch["attention_mask"])
        logits = prompts.logits(supervised)
        return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED_TARGET)

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        prompts = [feature["input_ids"] for feature in features]
        if self.labels:
            return self._score_labels(model, batch, prompts, tokenizer)
        limit = self.max_new_tokens
        if self.separator is not None:
            from peftcls.tasks.keyword_lists import generate_lists

            return generate_lists(model, prompts, tokenizer, limit, self.separator, self.lists)
        from peftcls.tasks.generation import generate_texts

        return generate_texts(model, prompts, tokenizer, limit)

    def _score_labels(
        self,
        model: torch.nn.Module,
        batch: Batch,
        prompts: list[list[int]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        """Answers out of the closed set of labels, with their probabilities."""
        from peftcls.engine.prompt_logits import Prompts

        trie = LabelTrie.build(self.label_tokens(tokenizer), int(tokenizer.eos_token_id))
        marks = [[0] * (len(prompt) - 1) + [1] for prompt in prompts]
        last = pad(marks, 0, tokenizer.padding_side).bool().to(batch["input_ids"].device)
        needs_continuation = trie.runs != ((),)
        scorer = Prompts(
            model, batch["input_ids"], batch["attention_mask"], keep=needs_continuation
        )
        logits: dict[Tokens, torch.Tensor] = {(): scorer.logits(last)}
        for run in trie.runs:
            depths = trie.fork_depths(run)
            if not depths:
                continue
            by_depth = scorer.continue_with(run, depths)
            for index, depth in enumerate(depths):
                logits[run[:depth]] = by_depth[:, index]
        table = self.decisions.one_of(trie.log_probabilities(logits))
        answers = []
        for row in table.tolist():
            probabilities = dict(zip(self.labels or (), row, strict=True))
            label = self.decisions.choose(probabilities)
            answers.append(Answer(label=label, probabilities=probabilities))
        return answers

    @property
    def answer_kind(self) -> AnswerKind:
        if self.labels:
            return "label"
        return "text" if self.separator is None else "keywords"

    def fixed_columns(self) -> set[str]:
        return set(self.columns(with_target=False)) - {self.input}

    def raw_logits(self, model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        )
        return without_padding(output.logits, batch["attention_mask"])

    def plain_logits(self, output: Any, batch: Batch) -> list[torch.Tensor]:
        return without_padding(output.logits, batch["attention_mask"])

    def merge_remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        remarks = [prompt_remark(self.template)]
        if self.lists > 1:
            remarks.append(lists_remark(self.lists))
        if self.labels:
            remarks.append(
                "transformers generates an answer and scores no labels, "
                "so it may give a text that is none of them."
            )
        return [*remarks, *super().merge_remarks(tokenizer)]

    @property
    def score_names(self) -> tuple[str, ...]:
        if self.labels:
            return metrics.LABEL_SCORES
        return metrics.TEXT_SCORES if self.separator is None else metrics.KEYWORD_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        rows = list(rows)
        golds = [self.gold_of(row) for row in rows]
        if self.labels:
            return metrics.closed_set_scores(
                [gold[0] for gold in golds],
                [answer.label for answer in answers],
                [answer.probabilities or {} for answer in answers],
                self.labels,
            )
        unusable = sum(not answer.usable for answer in answers) / len(answers)
        if self.separator is not None:
            scores = metrics.keyword_scores(
                golds,
                [answer.labels or () for answer in answers],
                [self.text_of(row) for row in rows],
            )
            return {**scores, "unusable": unusable}
        pairs = zip(answers, golds, strict=True)
        exact = sum((answer.text,) == gold for answer, gold in pairs)
        return {"exact_match": exact / len(golds), "unusable": unusable}

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        if not self.labels:
            return super().calibrated(answers, rows, min_accuracy=min_accuracy)
        decisions = fit_decisions(
            answers,
            [self.gold_of(row) for row in rows],
            self.labels,
            self.decisions,
            several=False,
            min_accuracy=min_accuracy,
        )
        return dataclasses.replace(self, decisions=decisions)
