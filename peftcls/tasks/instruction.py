"""An instruction and an input get a text for an answer, or one of a closed set of labels, from a causal LM."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import datasets
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.data.reading import Row, RowError, require_columns, source_name
from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import unwrapped
from peftcls.engine.prefix_cache import Prompts, common_tokens
from peftcls.tasks.base import Answer, Feature, Task, pad, pad_inputs, token_limit
from peftcls.tasks.decisions import PLAIN, Decisions, decisions_setting, fit_decisions
from peftcls.tasks.label_trie import Choices
from peftcls.tasks.labels import ONE_LABEL, label_name, label_order, label_setting_problem
from peftcls.tasks.prompts import fit_document, placeholders, render, split_cue, tokenize_answered

NOTHING = -100  # a target that is none
TEMPLATE = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


@dataclasses.dataclass(frozen=True)
class Instruction(Task):
    """Instruction tuning; only the answer's tokens are targets.

    Args:
        instruction: the column behind `{instruction}` in the template.
        input: the column behind `{input}`: the document, the only part that is ever shortened.
        output: the column with the answer.
        labels: the closed set of answers, at least two. Given, a prediction is one of them with its probability, read
            from the model's own likelihoods in one pass; otherwise the answer is generated greedily.
        separator: of a list-like answer such as keywords (";"); the answer is then scored as a set.
        template: the prompt. `{instruction}` and `{input}` stand for the columns above, any other `{name}` for the
            column of that name, so a template can also hold the instruction itself. White space at its end is taken as
            the beginning of the answer.
        max_length: tokens of prompt and answer together.
        max_new_tokens: tokens of a generated answer, its end mark included.
        decisions: with `labels`, temperature, thresholds and abstention; fitted by `Trainer.calibrate`.
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

    new_head: ClassVar[bool] = False
    auto_model: ClassVar[Any] = AutoModelForCausalLM
    peft_type: ClassVar[str] = "CAUSAL_LM"

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Instruction)
        object.__setattr__(self, "decisions", decisions_setting(self.decisions, self.labels))
        problems = []
        if self.labels is not None:
            if problem := label_setting_problem(self.labels):
                problems.append(problem)
            object.__setattr__(self, "labels", tuple(label_name(label) for label in self.labels))
            if len(self.labels) < 2:
                problems.append(f"labels={self.labels}: expected two or more different labels")
            if self.separator is not None:
                problems.append(
                    "labels and separator: an answer is one of a closed set or a list, not both"
                )
        if self.separator == "":
            problems.append("separator='': expected a text such as ';'")
        if not self.template.strip():
            problems.append("template is empty: expected a text with {input}")
        if self.template.count("{input}") > 1:
            problems.append(
                f"template has {{input}} {self.template.count('{input}')} times: expected a text that has it once"
            )
        if self.max_new_tokens < 2 or self.max_length <= self.max_new_tokens:
            problems.append(
                f"max_length={self.max_length} and max_new_tokens={self.max_new_tokens}: expected at least 2 tokens "
                "for the answer and more for both together"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """The score that decides which step was best."""
        return "f1_macro" if self.labels else "f1" if self.separator else "exact_match"

    def columns(self, *, with_target: bool) -> list[str]:
        own = {"instruction": self.instruction, "input": self.input}
        inputs = list(dict.fromkeys(own.get(name, name) for name in placeholders(self.template)))
        return [*inputs, self.output] if with_target else inputs

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "Instruction")
        if not self.labels:
            return dataclasses.replace(self, decisions=PLAIN)
        for number, value in enumerate(rows[self.output], 1):
            if isinstance(value, list | Mapping):
                raise RowError(f"row {number} of {source_name(rows)} {self._no_list(value)}.")
        new = (
            {label_name(value) for value in rows[self.output] if value is not None}
            - {""}
            - set(self._labels)
        )
        return dataclasses.replace(self, labels=(*self._labels, *label_order(new)), decisions=PLAIN)

    def _no_list(self, value: Any) -> str:
        wanted = "one label" if self.labels else "a text; for several, set separator"
        return f"has {str(value)[:80]} in column {self.output!r}, expected {wanted}"

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        inputs = [self.input] if "{input}" in self.template else self.columns(with_target=False)
        if inputs and not any(str(row[column] or "").strip() for column in inputs):
            return f"has no text in column {inputs[0]!r}; fill it in or leave the row out"
        if not with_target:
            return None
        if row[self.output] is None or not str(row[self.output]).strip():
            return f"has no answer in column {self.output!r}; fill it in or leave the row out"
        if isinstance(row[self.output], Mapping if self.separator else list | Mapping):
            return self._no_list(row[self.output])
        if self.separator is not None:
            listed = row[self.output] if isinstance(row[self.output], list) else []
            if odd := [part for part in listed if not isinstance(part, str | None)]:
                return f"has {odd[0]!r} in the list in column {self.output!r}, expected texts"
            if not self._parts(row[self.output]):
                return f"has no answer in column {self.output!r} between its {self.separator!r}; fill it in or leave the row out"
        if self.labels and label_name(row[self.output]) not in self.labels:
            return f"has the label {label_name(row[self.output])!r}, expected one of {list(self.labels)}"
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        found = {label_name(value) for value in rows[self.output]} if self.labels else {"", " "}
        if len(found) < 2:
            return f"has only the label {sorted(found)} in column {self.output!r}; {ONE_LABEL}"
        return None

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        if self.columns(with_target=False) != [self.input]:
            raise RowError(
                f"bare texts are not enough: the template needs the columns {self.columns(with_target=False)}; "
                "give rows such as {'column': value}."
            )
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise RowError(
                    f"text {number} of {len(texts)} is {str(text)[:80]!r}, expected a text."
                )
        return [{self.input: text} for text in texts]

    def text_of(self, row: Row) -> str:
        return "\n".join(str(row[column] or "") for column in self.columns(with_target=False))

    def gold_of(self, row: Row) -> tuple[str, ...]:
        if self.separator is not None:
            return self._parts(row[self.output])
        return (label_name(row[self.output]) if self.labels else str(row[self.output]).strip(),)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        cue, space = split_cue(self.template)
        choices = self._label_tokens(tokenizer)
        answer_limit = max(map(len, choices)) + 1 if choices else self.max_new_tokens
        limit = token_limit(tokenizer, self.max_length) - answer_limit
        values = [
            {**row, "instruction": row.get(self.instruction), "input": row.get(self.input)}
            for row in rows
        ]
        answers = [
            self._answer(row) if with_target else self.labels[0] if self.labels else "x"
            for row in rows
        ]
        asked = [
            (render(cue, own), space + answer) for own, answer in zip(values, answers, strict=True)
        ]
        for place, (ids, target) in enumerate(tokenize_answered(tokenizer, asked)):
            shortened, answer = False, answers[place]
            if len(ids) + len(target) > limit:
                prompt, shortened = fit_document(tokenizer, cue, values[place], "input", limit)
                ((ids, target),) = tokenize_answered(tokenizer, [(prompt, space + answer)])
            if not with_target:
                yield {"input_ids": ids, "shortened": shortened}
                continue
            if choices and tuple(target) != choices[self._labels.index(answer)]:
                raise RowError(
                    f"has the label {answer!r} in other tokens than alone: the template must end in a space or a new line"
                )
            if len(target) + 1 > answer_limit:
                raise RowError(
                    f"has an answer of {len(target)} tokens in column {self.output!r}, expected at most "
                    f"{answer_limit - 1}; shorten it or raise max_new_tokens (now {self.max_new_tokens})"
                )
            yield {
                "input_ids": [*ids, *target, int(tokenizer.eos_token_id)],
                "prompt_tokens": len(ids),
                "weight": float(len(target) + 1),
                "shortened": shortened,
            }

    def _answer(self, row: Row) -> str:
        given = row[self.output]
        if self.labels:
            return label_name(given)
        return (
            f"{self.separator} ".join(self._parts(given))
            if isinstance(given, list)
            else str(given).strip()
        )

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.labels or ()

    def _label_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
        return _label_tokens(self.template, self._labels, tokenizer, len(tokenizer))

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = pad_inputs(features, tokenizer)
        if (
            "prompt_tokens" in features[0]
        ):  # the state before a token predicts it: the mask stands one place to the left
            marks = [
                [0] * (f["prompt_tokens"] - 1) + [1] * int(f["weight"]) + [0] for f in features
            ]
            batch["supervised"] = pad(marks, 0, tokenizer.padding_side).bool()
        return batch

    def shared_tokens(self, model: torch.nn.Module, features: Sequence[Feature]) -> int:
        return common_tokens(
            model,
            [(f["input_ids"], f.get("prompt_tokens", len(f["input_ids"])) - 1) for f in features],
        )

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        marks, following = batch["supervised"], batch["input_ids"].roll(-1, dims=1)
        if marks.dtype == torch.bool:
            target = following[marks]
        else:  # as places
            target = (
                following.gather(1, marks.clamp(min=0)).masked_fill(marks < 0, NOTHING).flatten()
            )
        found = Prompts(model, batch["input_ids"], batch["attention_mask"]).logits(marks)
        return F.cross_entropy(found, target, reduction="sum", ignore_index=NOTHING)

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        prompts = [f["input_ids"] for f in features]
        return (
            self._choose(model, batch, prompts, tokenizer)
            if self.labels
            else self._generate(model, prompts, tokenizer)
        )

    def _choose(
        self,
        model: torch.nn.Module,
        batch: Batch,
        prompts: list[list[int]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        choices = Choices.of(self._label_tokens(tokenizer), int(tokenizer.eos_token_id))
        last = (
            pad([[0] * (len(p) - 1) + [1] for p in prompts], 0, tokenizer.padding_side)
            .bool()
            .to(batch["input_ids"].device)
        )
        read = Prompts(
            model, batch["input_ids"], batch["attention_mask"], keep=choices.runs != ((),)
        )
        logits: dict[tuple[int, ...], torch.Tensor] = {(): read.logits(last)}
        for run in choices.runs:
            if depths := [
                len(prefix) for prefix in choices.forks if prefix and run[: len(prefix)] == prefix
            ]:
                by_depth = read.read_on(run, depths)
                logits |= {
                    run[:depth]: by_depth[:, place] for place, depth in enumerate(sorted(depths))
                }
        table = self.decisions.one_of(choices.log_probabilities(logits)).tolist()
        named = [dict(zip(self._labels, row, strict=True)) for row in table]
        return [
            Answer(label=self.decisions.choose(probabilities), probabilities=probabilities)
            for probabilities in named
        ]

    def _generate(
        self, model: torch.nn.Module, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
    ) -> list[Answer]:
        batch = {
            "input_ids": pad(prompts, int(tokenizer.pad_token_id), "left"),
            "attention_mask": pad([[1] * len(p) for p in prompts], 0, "left"),
        }
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        device = next(model.parameters()).device
        ids = unwrapped(model).generate(
            **{k: v.to(device) for k, v in batch.items()}, generation_config=greedy
        )
        answers = []
        for new in ids[:, batch["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in new
            text = str(
                tokenizer.decode(
                    new[: new.index(tokenizer.eos_token_id)] if ended else new,
                    skip_special_tokens=True,
                )
            ).strip()
            parts = None if self.separator is None else self._parts(text)
            answers.append(
                Answer(text=text, labels=parts, usable=ended and bool(text) and parts != ())
            )
        return answers

    def _parts(self, text: Any) -> tuple[str, ...]:
        parts = text if isinstance(text, list) else str(text).split(self.separator)
        return tuple(dict.fromkeys(p.strip() for p in parts if p and p.strip()))

    @property
    def score_names(self) -> tuple[str, ...]:
        if self.labels:
            return metrics.LABEL_SCORES
        sets = tuple(
            part + name
            for part in ("f1", "precision", "recall")
            for name in ("", "_at_5", "_at_10")
        )
        return (
            (*sets, "recall_present", "recall_absent")
            if self.separator is not None
            else ("exact_match",)
        ) + ("unusable",)

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        rows = list(rows)
        gold = [self.gold_of(row) for row in rows]
        if self.labels:
            return metrics.closed_set_scores(
                [name for (name,) in gold],
                [a.label for a in answers],
                [a.probabilities or {} for a in answers],
                self.labels,
            )
        unusable = sum(not a.usable for a in answers) / len(answers)
        if self.separator is not None:
            found = metrics.keyword_scores(
                gold, [a.labels or () for a in answers], [self.text_of(row) for row in rows]
            )
            return {**found, "unusable": unusable}
        return {
            "exact_match": sum((a.text,) == g for a, g in zip(answers, gold, strict=True))
            / len(gold),
            "unusable": unusable,
        }

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        if not self.labels:
            return super().calibrated(answers, rows, min_accuracy=min_accuracy)
        gold = [self.gold_of(row) for row in rows]
        return dataclasses.replace(
            self,
            decisions=fit_decisions(
                answers, gold, self.labels, self.decisions, several=False, min_accuracy=min_accuracy
            ),
        )


@functools.lru_cache(maxsize=4)  # every row asks for them
def _label_tokens(
    template: str, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, _: int
) -> list[tuple[int, ...]]:
    """The tokens of each label behind a template; a tokenizer that has grown is asked again."""
    cue, space = split_cue(template)
    prompt = render(cue, {})
    return (
        [
            tuple(target)
            for _, target in tokenize_answered(
                tokenizer, [(prompt, space + label) for label in labels]
            )
        ]
        if labels
        else []
    )
