"""Builds the task of `peftcls train` and `peftcls check` from the columns and the options."""

from collections.abc import Sequence
from typing import Any, cast

from peftcls.cli.column_guessing import Columns
from peftcls.engine.model_choices import Pooling
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import TEMPLATE, Instruction
from peftcls.tasks.labels import label_name
from peftcls.tasks.prompts import placeholders
from peftcls.tasks.regression import Regression

MAX_KEYWORD_TOKENS = 96
TEMPLATE_WITHOUT_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"

# The tasks that have each option.
HAVE_PROMPT = ("instruction", "keywords")
HAVE_LABELS = ("classification", "pair", "multi-label", "instruction")
HAVE_CLASS_WEIGHT = ("classification", "pair")
HAVE_POOLING = ("classification", "pair", "multi-label", "regression")


def task_for(
    columns: Columns,
    *,
    labels: Sequence[str] | None = None,
    prompt: str | None = None,
    max_length: int | None = None,
    class_weight: str | None = None,
    pooling: Pooling | None = None,
    max_new_tokens: int | None = None,
) -> Task:
    """The task on these columns, before it has learnt from rows.

    Raises:
        ValueError: the task does not have one of the options.
    """
    kind = columns.kind
    if prompt is not None and kind not in HAVE_PROMPT:
        raise ValueError(f"--prompt cannot be used with --task {kind}.")
    if labels and kind not in HAVE_LABELS:
        raise ValueError(f"--labels cannot be used with --task {kind}.")
    if class_weight is not None and kind not in HAVE_CLASS_WEIGHT:
        raise ValueError(f"--class-weight cannot be used with --task {kind}.")
    if pooling is not None and kind not in HAVE_POOLING:
        raise ValueError(f"--pooling cannot be used with --task {kind}.")
    if max_new_tokens is not None and kind not in HAVE_PROMPT:
        raise ValueError(f"--max-new-tokens cannot be used with --task {kind}.")

    label_names = tuple(labels) if labels else None
    options: dict[str, Any] = {}
    if max_length is not None:
        options["max_length"] = max_length
    if kind == "qa":
        question, context = columns.text
        return ExtractiveQA(question=question, context=context, answers=columns.label, **options)
    if kind in ("instruction", "keywords"):
        if kind == "keywords":
            options["separator"] = ";"
            options["max_new_tokens"] = MAX_KEYWORD_TOKENS
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return Instruction(
            template=prompt or _default_template(columns),
            instruction=columns.text[0],
            input=columns.text[-1],
            output=columns.label,
            labels=label_names,
            **options,
        )
    text = _text_argument(columns)
    options["pooling"] = pooling
    if kind == "regression":
        return Regression(text=text, target=columns.label, **options)
    return Classification(
        text=text,
        label=columns.label,
        multi_label=kind == "multi-label",
        labels=label_names,
        class_weight=cast(Any, class_weight),
        **options,
    )


def _text_argument(columns: Columns) -> str | tuple[str, str]:
    """The column of a text, or the two columns of a pair."""
    if len(columns.text) == 2:
        first, second = columns.text
        return (first, second)
    return columns.text[0]


def parse_labels(labels: str | None) -> list[str] | None:
    """The label names of --labels, or None where it is not given.

    Raises:
        ValueError: a name is empty or occurs twice.
    """
    if labels is None:
        return None
    names = [label_name(name) for name in labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"--labels {labels!r}: expected different names with commas between them, "
            "none of them empty: --labels yes,no."
        )
    return names


def _default_template(columns: Columns) -> str:
    """The prompt where --prompt is not given."""
    if columns.kind == "instruction":
        return _instruction_template(columns)
    return _keywords_template(columns)


def _instruction_template(columns: Columns) -> str:
    """The Alpaca prompt, for tables that have a column 'instruction'."""
    if columns.text[0].casefold() != "instruction":
        raise ValueError(
            "--task instruction without a column 'instruction' needs a prompt, for example "
            '--prompt "Is this message spam or ham? {input} Answer: ".'
        )
    if len(columns.text) == 2:
        return TEMPLATE
    return TEMPLATE_WITHOUT_INPUT


def _keywords_template(columns: Columns) -> str:
    """A prompt that asks for keywords and shows each text column with its name."""
    *first_columns, input_column = columns.text
    for name in first_columns:
        if placeholders(f"{{{name}}}") != [name]:
            raise ValueError(
                f"the column {name!r} cannot be used in a prompt; "
                "rename it with letters, digits and _ only."
            )
    lines = [f"{name}: {{{name}}}" for name in first_columns]
    lines.append(f"{input_column}: {{input}}")
    texts = "\n".join(lines)
    return f"List the keywords of this text, separated by semicolons.\n{texts}\nKeywords: "
