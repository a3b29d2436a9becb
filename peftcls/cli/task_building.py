"""Builds the task of `peftcls train` and `peftcls check` from the columns and the options."""

from collections.abc import Mapping
from typing import Any

from peftcls.cli.column_guessing import Columns
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import TEMPLATE, Instruction
from peftcls.tasks.labels import label_name
from peftcls.tasks.prompts import placeholders
from peftcls.tasks.regression import Regression

MAX_KEYWORD_TOKENS = 96
TEMPLATE_WITHOUT_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"

WITH_LABELS = ("classification", "pair", "multi-label")
WITH_ONE_LABEL = ("classification", "pair")
WITH_HEAD = (*WITH_LABELS, "regression")
WITH_PROMPT = ("instruction", "keywords")
TASKS_WITH = {
    "prompt": WITH_PROMPT,
    "max_new_tokens": WITH_PROMPT,
    "labels": (*WITH_LABELS, "instruction"),
    "class_weight": WITH_ONE_LABEL,
    "sampling": WITH_ONE_LABEL,
    "separator": ("multi-label", "keywords"),
    "samples": ("keywords",),
    "label_smoothing": WITH_ONE_LABEL,
    "loss": WITH_LABELS,
    "pooling": WITH_HEAD,
    "weight": WITH_HEAD,
    "decimal": ("regression",),
    "long_text": WITH_HEAD,
}
"""The tasks that have a setting; all others have every task."""
OPTION_NAMES = {"separator": "label-separator"}
"""The options that are not called after their setting."""


def task_for(columns: Columns, settings: Mapping[str, Any]) -> Task:
    """The task on these columns, before it has learnt from rows.

    Args:
        columns: the kind of task and its columns.
        settings: of the task, by the names of their options with underscores; those that are None
            are not given.

    Raises:
        ValueError: the task does not have one of the settings.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    kind = columns.kind
    for name in given:
        if kind not in TASKS_WITH.get(name, (kind,)):
            option = OPTION_NAMES.get(name, name.replace("_", "-"))
            raise ValueError(f"--{option} cannot be used with --task {kind}.")
    if "labels" in given:
        given["labels"] = parse_labels(given["labels"])
    text = _text_argument(columns)
    if kind in WITH_LABELS:
        return Classification(
            text=text, label=columns.label, multi_label=kind == "multi-label", **given
        )
    assert isinstance(columns.label, str), "only a task with labels has several columns of them"
    if kind == "qa":
        question, context = columns.text
        return ExtractiveQA(question=question, context=context, answers=columns.label, **given)
    if kind == "regression":
        return Regression(text=text, target=columns.label, **given)
    return _instruction_task(columns, columns.label, given)


def _instruction_task(columns: Columns, output: str, settings: Mapping[str, Any]) -> Instruction:
    options = dict(settings)
    template = options.pop("prompt", None) or _default_template(columns)
    if columns.kind == "keywords":
        options = {"separator": ";", "max_new_tokens": MAX_KEYWORD_TOKENS, **options}
    return Instruction(
        template=template,
        instruction=columns.text[0],
        input=columns.text[-1],
        output=output,
        **options,
    )


def _text_argument(columns: Columns) -> str | tuple[str, str]:
    """The column of a text, or the two columns of a pair."""
    if len(columns.text) == 2:
        first, second = columns.text
        return (first, second)
    return columns.text[0]


def parse_labels(labels: str) -> tuple[str, ...]:
    """The label names of --labels.

    Raises:
        ValueError: a name is empty or occurs twice.
    """
    names = tuple(label_name(name) for name in labels.split(","))
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
