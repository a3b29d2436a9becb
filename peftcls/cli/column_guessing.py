"""What a table is for, by its columns: where there is one sensible guess it is made and said, and where not it is asked."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, cast

import datasets

from peftcls.data.reading import RowError, source_name
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import TEMPLATE, Instruction
from peftcls.tasks.labels import label_name
from peftcls.tasks.prompts import placeholders
from peftcls.tasks.regression import Regression

SAMPLE_ROWS = 2000
MOST_LABELS, LEAST_ROWS_A_LABEL = 20, 3
LABEL_CHARACTERS, TEXT_CHARACTERS = 40, 20
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("title", "abstract"),
    ("title", "text"),
    ("title", "body"),
    ("subject", "body"),
)
TEXTS = (
    "text",
    "message",
    "sentence",
    "review",
    "comment",
    "content",
    "body",
    "document",
    "abstract",
    "description",
    "input",
    "title",
)
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "intent")
NUMBERS = ("score", "rating", "similarity", "stars", "value", "price")
KEYWORDS = ("keywords", "keyphrases", "tags")
QUESTIONS, CONTEXTS, ANSWERS = (
    ("question",),
    ("context", "paragraph", "passage"),
    ("answers", "answer"),
)
OUTPUTS = ("output", "response", "answer", "completion")
LISTED = (
    "label",
    "labels",
)  # where several columns have a name of the lists above, one of these is meant
ANSWER_TOKENS = 96  # of a list of keywords


@dataclasses.dataclass(frozen=True)
class Columns:
    """The kind of task, and the columns that it reads and learns."""

    kind: str
    text: tuple[str, ...]
    label: str

    def __str__(self) -> str:
        texts = " and ".join(map(repr, self.text))
        return f"task: {self.kind}; text column{'s' if len(self.text) > 1 else ''}: {texts}, label column: {self.label!r}"


def guess_columns(
    rows: datasets.Dataset,
    *,
    kind: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
) -> Columns:
    """The columns of a table, as far as they are given, and a guess of the rest.

    Raises:
        RowError: a given column is not there, or no guess, or more than one, is sensible.
        ValueError: the settings exclude each other.
    """
    text, label = tuple(_own(rows, name) for name in text), _own(rows, label) if label else None
    if len(text) > 2 or (kind == "pair" and len(text) == 1):
        raise ValueError(
            f"--text is given {len(text)} times, expected once for a text, or twice for a pair."
        )
    if kind == "qa" or (
        kind is None
        and not text
        and all(_named(rows, names) for names in (QUESTIONS, CONTEXTS, ANSWERS))
    ):
        both = text or tuple(_one(rows, names, "--text") for names in (QUESTIONS, CONTEXTS))
        if len(both) != 2:
            raise ValueError("--task qa needs two texts: --text QUESTION --text CONTEXT.")
        return Columns("qa", both, label or _one(rows, ANSWERS, "--label"))
    if kind == "instruction" or (
        kind is None and not text and _named(rows, ("instruction",)) and _named(rows, OUTPUTS)
    ):
        own = text or tuple(_named(rows, ("instruction",)) + _named(rows, ("input", *TEXTS))[:1])
        if not own:
            raise RowError(
                f"{source_name(rows)} has no column 'instruction' or 'input'; it has {rows.column_names}. Say which column is "
                "the text with --text."
            )
        return Columns("instruction", own, label or _one(rows, (*OUTPUTS, *LABELS), "--label"))
    label = label or _guess_label(rows, kind, text)
    found = _guess_kind(rows, kind, label)
    text = text or _guess_text(
        rows, label, pair={"pair": True, "classification": False}.get(kind or "")
    )
    return Columns("pair" if found == "classification" and len(text) == 2 else found, text, label)


def task_for(
    columns: Columns,
    *,
    labels: Sequence[str] | None = None,
    prompt: str | None = None,
    max_length: int | None = None,
    class_weight: str | None = None,
) -> Task:
    """The task on these columns; what the rows determine is still to be learnt.

    Raises:
        ValueError: a setting that the task does not have.
    """
    kind, given = (
        columns.kind,
        cast(dict[str, Any], {} if max_length is None else {"max_length": max_length}),
    )
    if (prompt is not None and kind not in ("instruction", "keywords")) or (
        labels and kind in ("qa", "regression", "keywords")
    ):
        raise ValueError(
            f"{'--prompt' if prompt is not None else '--labels'} is nothing that --task {kind} has; leave it out."
        )
    if class_weight is not None and kind not in ("classification", "pair"):
        raise ValueError(f"--class-weight is nothing that --task {kind} has; leave it out.")
    if kind == "qa":
        return ExtractiveQA(
            question=columns.text[0], context=columns.text[1], answers=columns.label, **given
        )
    if kind in ("instruction", "keywords"):
        template = prompt or _template(columns)
        given |= {"separator": ";", "max_new_tokens": ANSWER_TOKENS} if kind == "keywords" else {}
        return Instruction(
            template=template,
            instruction=columns.text[0],
            input=columns.text[-1],
            output=columns.label,
            labels=tuple(labels) if labels else None,
            **given,
        )
    text: Any = columns.text if len(columns.text) == 2 else columns.text[0]
    if kind == "regression":
        return Regression(text=text, target=columns.label, **given)
    weight: Any = class_weight
    return Classification(
        text=text,
        label=columns.label,
        multi_label=kind == "multi-label",
        labels=tuple(labels) if labels else None,
        class_weight=weight,
        **given,
    )


def listed_labels(labels: str | None) -> list[str] | None:
    """The label names of --labels; None where it is not given. Raises ValueError where one is empty."""
    if labels is None:
        return None
    names = [label_name(name) for name in labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"--labels {labels!r}: expected different names with commas between them, none of them empty: --labels yes,no."
        )
    return names


def _template(columns: Columns) -> str:
    """The prompt where none is given: the instruction of each row, or the wish for keywords."""
    if columns.kind == "instruction":
        if columns.text[0].casefold() == "instruction":
            return (
                TEMPLATE
                if len(columns.text) == 2
                else "### Instruction:\n{instruction}\n\n### Response:\n"
            )
        raise ValueError(
            "--task instruction without a column 'instruction' needs a prompt, for example "
            '--prompt "Is this message spam or ham? {input} Answer: ".'
        )
    shown = [f"{name}: {{{name}}}" for name in columns.text[:-1]] + [
        f"{columns.text[-1]}: {{input}}"
    ]
    if wrong := [name for name in columns.text[:-1] if placeholders(f"{{{name}}}") != [name]]:
        raise ValueError(
            f"the column {wrong[0]!r} cannot stand in a prompt; rename it with letters, digits and _ alone."
        )
    return (
        "List the keywords of this text, separated by semicolons.\n"
        + "\n".join(shown)
        + "\nKeywords: "
    )


def _named(rows: datasets.Dataset, names: Sequence[str]) -> list[str]:
    """The table's own names of the columns that are called so, whatever their case, in the order of `names`."""
    own = {name.casefold(): name for name in rows.column_names}
    return [own[name] for name in names if name in own]


def _one(rows: datasets.Dataset, names: Sequence[str], option: str) -> str:
    if not (found := _named(rows, names)):
        raise RowError(
            f"{source_name(rows)} has no column {names[0]!r}; it has {rows.column_names}. Say which one is meant with {option}."
        )
    return found[0]


def _own(rows: datasets.Dataset, name: str) -> str:
    """The table's own name of a column, which may differ in upper and lower case."""
    if name in rows.column_names:
        return name
    if found := _named(rows, [name.casefold()]):
        return found[0]
    near = difflib.get_close_matches(name, rows.column_names, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise RowError(
        f"{source_name(rows)} has no column {name!r}; it has {rows.column_names}.{meant}"
    )


def _sample(rows: datasets.Dataset, column: str) -> list[Any]:
    return [
        value
        for value in rows.select(range(min(SAMPLE_ROWS, len(rows))))[column]
        if value is not None and value != ""
    ]


def _guess_label(rows: datasets.Dataset, kind: str | None, text: Sequence[str]) -> str:
    names = {"keywords": KEYWORDS, "regression": (*NUMBERS, *LABELS)}.get(
        kind or "", (*LABELS, *NUMBERS, *KEYWORDS)
    )
    if not (found := [name for name in _named(rows, names) if name not in text]):
        found = [
            name
            for name in rows.column_names
            if name not in text and _is_label(_sample(rows, name))
        ]
    if len(found) > 1 and (meant := [name for name in found if name.casefold() in LISTED]):
        found = meant
    return _only(rows, found, "label", "--label")


def _is_label(values: list[Any]) -> bool:
    """Whether a column that is called nothing in particular looks like labels: short, few, and each several times."""
    if not values or not all(isinstance(value, str | int | bool) for value in values):
        return False
    kinds = {str(value) for value in values}
    return (
        2 <= len(kinds) <= MOST_LABELS
        and LEAST_ROWS_A_LABEL * len(kinds) <= len(values)
        and max(map(len, kinds)) <= LABEL_CHARACTERS
    )


def _guess_kind(rows: datasets.Dataset, kind: str | None, label: str) -> str:
    if kind is not None:
        return "classification" if kind == "pair" else kind
    values = _sample(rows, label)
    if label.casefold() in KEYWORDS:
        return "keywords"
    if (
        any(isinstance(value, list) for value in values)
        or sum(";" in str(value) for value in values) > len(values) / 10
    ):
        return "multi-label"
    numbers = [
        float(value) for value in values if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", str(value))
    ]
    whole = len(numbers) == len(values) and all(number.is_integer() for number in numbers)
    if (
        numbers
        and len(numbers) == len(values)
        and (not whole or len(set(numbers)) > MOST_LABELS or label.casefold() in NUMBERS)
    ):
        return "regression"
    if len({str(value) for value in values}) > max(MOST_LABELS, len(values) / 2):
        raise RowError(
            f"column {label!r} of {source_name(rows)} has {len(set(map(str, values)))} different values in {len(values)} rows, "
            "which are no labels; choose another column with --label, or --task instruction or keywords for free answers."
        )
    return "classification"


def _guess_text(rows: datasets.Dataset, label: str, *, pair: bool | None) -> tuple[str, ...]:
    """One column or a pair; `pair` says which of them is wanted, None that either is."""
    if pair is not False:
        for names in PAIRS:
            if len(found := [name for name in _named(rows, names) if name != label]) == 2:
                return tuple(found)
    others = [name for name in rows.column_names if name != label]
    long = [name for name in others if _is_text(_sample(rows, name))]
    if pair:
        if len(long) != 2:
            raise RowError(
                f"{source_name(rows)} has {len(long)} columns that could be texts ({', '.join(map(repr, long))}), expected two "
                "for a pair; say which with --text A --text B."
            )
        return tuple(long)
    if "text" in (named := [name.casefold() for name in others]):
        return (others[named.index("text")],)
    candidates = long or _named(rows, TEXTS) or (others if len(others) == 1 else [])
    if (
        len(candidates) > 1
        and len(known := [name for name in candidates if name.casefold() in TEXTS]) == 1
    ):
        candidates = known
    return (_only(rows, candidates, "text", "--text"),)


def _is_text(values: list[Any]) -> bool:
    """Whether a column holds texts: strings, not short, mostly different."""
    if not values or not all(isinstance(value, str) for value in values):
        return False
    return sum(map(len, values)) / len(values) >= TEXT_CHARACTERS and 2 * len(set(values)) > len(
        values
    )


def _only(rows: datasets.Dataset, found: Sequence[str], what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    seen = (
        f"several columns that could be the {what} ({', '.join(map(repr, found))})"
        if found
        else f"no column that looks like the {what}"
    )
    raise RowError(
        f"{source_name(rows)} has {seen}; it has {rows.column_names}. Say which one with {option}."
    )
