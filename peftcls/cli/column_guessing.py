"""Guesses the kind of task and its columns from a table; what is ambiguous is an error."""

import dataclasses
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from peftcls.data.column_names import find_column
from peftcls.data.missing_header import unnamed_columns
from peftcls.data.reading import RowError, name_source, source_name
from peftcls.data.row_batches import each_cell
from peftcls.tasks.list_cells import (
    DEFAULT_SEPARATOR,
    keywords_of,
    likely_separator,
    listed_cell,
)
from peftcls.tasks.numbers import with_comma

SAMPLE_ROWS = 2000
# Limits for a column of labels.
MAX_LABELS = 20
MIN_ROWS_PER_LABEL = 3
MAX_LABEL_CHARACTERS = 40
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
NAME_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
NAMES_OF_IDS = ("id", "code")
WORD = re.compile(r"[^\W\d_]+")
WORDS_OF_A_NAME = 2
TRUTH_VALUES = frozenset({"0", "1", "0.0", "1.0", "True", "False", "true", "false"})
NUMBERS_SHARE = 0.9
# The mean length of the values from which on a column counts as text.
MIN_TEXT_CHARACTERS = 20

PAIR_COLUMNS = (
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
TEXT_COLUMNS = (
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
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "topic",
    "intent",
)
NUMBER_COLUMNS = ("score", "rating", "similarity", "stars", "value", "price")
TAGS = "tags"
KEYWORD_COLUMNS = ("keywords", "keyphrases", TAGS)
QUESTION_COLUMNS = ("question",)
CONTEXT_COLUMNS = ("context", "paragraph", "passage")
ANSWER_COLUMNS = ("answers", "answer")
OUTPUT_COLUMNS = ("output", "response", "answer", "completion")
# Where there is one of these, another column of the table may hold its answers.
PROMPT_COLUMNS = ("prompt", "query", "question")
# Preferred where several columns could be the label.
PREFERRED_LABEL_COLUMNS = ("label", "labels")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The kind of task, its text columns, and its label column or one column for each label.

    `unread` holds further columns with texts, where the text column was guessed.
    """

    kind: str
    text: tuple[str, ...]
    label: str | tuple[str, ...]
    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        texts = " and ".join(map(repr, self.text))
        plural = "s" if len(self.text) > 1 else ""
        if self.unread:
            others = ", ".join(map(repr, self.unread))
            texts += f" alone, without {others} (for a pair give --text twice)"
        said = f"label column: {self.label!r}"
        if not isinstance(self.label, str):
            said = f"a column for each label: {', '.join(map(repr, self.label))}"
        return f"task: {self.kind}; text column{plural}: {texts}, {said}"


def guess_columns(
    rows: datasets.Dataset,
    *,
    kind: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    separator: str | None = None,
    other_columns: Sequence[str] = (),
) -> Columns:
    """The columns of a table: those that are given, and a guess of the others.

    Args:
        rows: the table.
        kind: the value of --task; guessed unless given.
        text: the text columns; one, or two for a pair or for question and context.
        label: the column with the targets, or several with commas between them, one for each
            label.
        separator: between several labels in a text, where that is said.
        other_columns: columns that are neither a text nor a target.

    Raises:
        RowError: a given column is missing, or the table allows no guess or more than one.
        ValueError: the arguments contradict each other.
    """
    text = tuple(find_column(rows, name) for name in text)
    label_columns = _find_label_columns(rows, label) if label else ()
    label = label_columns[0] if label_columns else None
    rows = _without(rows, {*other_columns, *unnamed_columns(rows)} - {*text, *label_columns})
    if len(text) > 2 or (kind == "pair" and len(text) == 1):
        raise ValueError(
            f"--text is given {len(text)} times, expected once for a text, or twice for a pair."
        )
    if len(label_columns) > 1:
        return _one_hot_columns(rows, kind, text, label_columns)
    can_guess_kind = kind is None and not text
    if kind == "qa" or (can_guess_kind and _looks_like_questions(rows)):
        return _question_columns(rows, text, label)
    if kind == "instruction" or (can_guess_kind and _looks_like_instructions(rows)):
        return _instruction_columns(rows, text, label)
    return _labelled_columns(rows, kind, text, label, separator)


def _find_label_columns(rows: datasets.Dataset, label: str) -> tuple[str, ...]:
    """The column of --label, or its columns: a comma may be a part of a column's name."""
    if "," not in label or _columns_named(rows, [label.casefold()]):
        return (find_column(rows, label),)
    return tuple(find_column(rows, name.strip()) for name in label.split(","))


def _one_hot_columns(
    rows: datasets.Dataset, kind: str | None, text: tuple[str, ...], labels: tuple[str, ...]
) -> Columns:
    """The columns of a table with a column of 0 and 1 for each label."""
    if kind not in (None, "multi-label"):
        raise ValueError(
            f"--label names {len(labels)} columns, one for each label, which is for --task "
            f"multi-label; it cannot be used with --task {kind}."
        )
    return Columns("multi-label", text or _guess_text(rows, kind, labels), labels)


def _without(rows: datasets.Dataset, columns: set[str]) -> datasets.Dataset:
    """A table without some columns; messages call it as before."""
    if not columns:
        return rows
    kept = [name for name in rows.column_names if name not in columns]
    return name_source(rows.select_columns(kept), source_name(rows))


def _looks_like_questions(rows: datasets.Dataset) -> bool:
    return all(
        _columns_named(rows, names) for names in (QUESTION_COLUMNS, CONTEXT_COLUMNS, ANSWER_COLUMNS)
    )


def _question_columns(rows: datasets.Dataset, text: tuple[str, ...], label: str | None) -> Columns:
    if not text:
        question = _first_named(rows, QUESTION_COLUMNS, "--text")
        context = _first_named(rows, CONTEXT_COLUMNS, "--text")
        text = (question, context)
    if len(text) != 2:
        raise ValueError("--task qa needs two texts: --text QUESTION --text CONTEXT.")
    return Columns("qa", text, label or _first_named(rows, ANSWER_COLUMNS, "--label"))


def _looks_like_instructions(rows: datasets.Dataset) -> bool:
    return bool(_columns_named(rows, ("instruction",)) and _columns_named(rows, OUTPUT_COLUMNS))


def _instruction_columns(
    rows: datasets.Dataset, text: tuple[str, ...], label: str | None
) -> Columns:
    if not text:
        instruction = _columns_named(rows, ("instruction",))
        inputs = _columns_named(rows, ("input", *TEXT_COLUMNS))
        text = (*instruction, *inputs[:1])
    if not text:
        raise RowError(
            f"{source_name(rows)} has no column 'instruction' or 'input'; "
            f"it has {rows.column_names}. Say which column is the text with --text."
        )
    names = (*OUTPUT_COLUMNS, *LABEL_COLUMNS)
    return Columns("instruction", text, label or _first_named(rows, names, "--label"))


def _labelled_columns(
    rows: datasets.Dataset,
    kind: str | None,
    text: tuple[str, ...],
    label: str | None,
    separator: str | None,
) -> Columns:
    """The columns of all other tasks: texts with labels, numbers or keywords."""
    label = label or _guess_label(rows, kind, text)
    guessed_kind = _guess_kind(rows, kind, label, separator)
    unread: tuple[str, ...] = ()
    if not text:
        text = _guess_text(rows, kind, (label,))
        if len(text) == 1 and kind is None:
            unread = _further_texts(rows, (*text, label))
    if guessed_kind == "classification" and len(text) == 2:
        guessed_kind = "pair"
    return Columns(guessed_kind, text, label, unread)


def _further_texts(rows: datasets.Dataset, known: Sequence[str]) -> tuple[str, ...]:
    """Other columns whose values are mostly different, and mostly of more words than a name has."""
    found = []
    for name in rows.column_names:
        values = _sample(rows, name)
        if name in known or not values or not all(isinstance(value, str) for value in values):
            continue
        sentences = sum(len(WORD.findall(value)) > WORDS_OF_A_NAME for value in values)
        if 2 * sentences > len(values) and 2 * len(set(values)) > len(values):
            found.append(name)
    return tuple(found)


def _columns_named(rows: datasets.Dataset, names: Sequence[str]) -> list[str]:
    """The table's columns with these names in upper or lower case, in the order of `names`."""
    by_lower_case = {name.casefold(): name for name in rows.column_names}
    return [by_lower_case[name] for name in names if name in by_lower_case]


def _first_named(rows: datasets.Dataset, names: Sequence[str], option: str) -> str:
    columns = _columns_named(rows, names)
    if not columns:
        raise RowError(
            f"{source_name(rows)} has no column {names[0]!r}; it has {rows.column_names}. "
            f"Say which one is meant with {option}."
        )
    return columns[0]


def _sample(rows: datasets.Dataset, column: str) -> list[Any]:
    """The values of the first rows, without empty ones."""
    first_rows = rows.select(range(min(SAMPLE_ROWS, len(rows))))
    return [value for value in first_rows[column] if value is not None and value != ""]


def _guess_label(rows: datasets.Dataset, kind: str | None, text: Sequence[str]) -> str:
    """The label column, by its name or by its values."""
    if kind == "keywords":
        names: tuple[str, ...] = KEYWORD_COLUMNS
    elif kind == "regression":
        names = (*NUMBER_COLUMNS, *LABEL_COLUMNS)
    else:
        names = (*LABEL_COLUMNS, *NUMBER_COLUMNS, *KEYWORD_COLUMNS)
    candidates = [name for name in _columns_named(rows, names) if name not in text]
    if not candidates:
        others = [name for name in rows.column_names if name not in text]
        candidates = [name for name in others if _holds_labels(_sample(rows, name))]
    if len(candidates) > 1:
        preferred = [name for name in candidates if name.casefold() in PREFERRED_LABEL_COLUMNS]
        candidates = preferred or candidates
    return _only_candidate(rows, candidates, "label", "--label")


def _holds_labels(values: list[Any]) -> bool:
    """Whether values look like labels: short, few different ones, and several rows of each."""
    if not values or not all(isinstance(value, str | int | bool) for value in values):
        return False
    labels = {str(value) for value in values}
    return (
        2 <= len(labels) <= MAX_LABELS
        and MIN_ROWS_PER_LABEL * len(labels) <= len(values)
        and max(map(len, labels)) <= MAX_LABEL_CHARACTERS
    )


def _guess_kind(rows: datasets.Dataset, kind: str | None, label: str, separator: str | None) -> str:
    """The kind of task by the label column; a pair counts as classification here."""
    if kind == "pair":
        return "classification"
    if kind is not None:
        return kind
    values = _sample(rows, label)
    if label.casefold() in KEYWORD_COLUMNS and not _are_of_few(values, label, separator):
        return "keywords"
    if separator is not None or _holds_label_sets(values):
        return "multi-label"
    if _holds_scores(values, label):
        return "regression"
    # A sample of a large table may show few of each label's rows.
    filled = array("q")
    for value in each_cell(rows, label):
        if value is not None and value != "":
            filled.append(hash(str(value)))
    different = len(np.unique(filled))
    if different > max(MAX_LABELS, len(filled) / 2):
        raise RowError(
            f"column {label!r} of {source_name(rows)} has {different} different values in "
            f"{len(filled)} rows, too many for labels; choose another column with --label, "
            "--task regression for numbers, or --task instruction or keywords for free answers "
            f"(--task classification if they are labels all the same).{_list_hint(values)}"
        )
    return "classification"


def _are_of_few(values: list[Any], label: str, separator: str | None) -> bool:
    """Whether tags are labels: few different ones, and several rows of each."""
    if label.casefold() != TAGS:
        return False
    mark = separator or likely_separator(Counter(map(str, values))) or DEFAULT_SEPARATOR
    counts = Counter(tag for value in values for tag in keywords_of(value, mark))
    return 2 <= len(counts) <= MAX_LABELS and min(counts.values()) >= MIN_ROWS_PER_LABEL


def _list_hint(values: list[Any]) -> str:
    """What to write where the values look like several labels each, with a space before it."""
    mark = likely_separator(Counter(map(str, values)))
    if mark is None:
        return ""
    return (
        f" They look like several labels with {mark!r} between them: if they are, give "
        f'--task multi-label --label-separator "{mark}".'
    )


def _holds_label_sets(values: list[Any]) -> bool:
    """Whether values are lists, or more than a tenth of them are written as lists.

    Lists that all have one entry are labels.
    """
    listed = [listed_cell(value, DEFAULT_SEPARATOR) for value in values]
    lists = [isinstance(value, list) for value in values]
    several = [len(entries) != 1 for entries in listed]
    if any(lists):
        return any(several)
    return sum(several) > len(values) / 10


def _holds_scores(values: list[Any], label: str) -> bool:
    """Whether values are numbers to predict, rather than labels that are written as numbers.

    A few that are none, such as "n/a" or "1,5", are wrong rows and not labels.
    """
    numbers = [float(value) for value in values if NUMBER.fullmatch(str(value))]
    commas = sum(map(with_comma, values))
    if not values or len(numbers) + commas < NUMBERS_SHARE * len(values):
        return False
    if label.casefold() in NUMBER_COLUMNS or commas:
        return True
    if not all(value.is_integer() for value in numbers):
        return True
    different = len(set(numbers))
    are_classes = _names_labels(label) and different * MIN_ROWS_PER_LABEL <= len(numbers)
    return different > MAX_LABELS and not are_classes


def _names_labels(column: str) -> bool:
    """Whether a column's name says that it holds labels, as "intent_id" and "topicLabel" do."""
    words = {word.casefold() for word in NAME_PART.findall(column)}
    return bool(words & {*LABEL_COLUMNS, *NAMES_OF_IDS})


def _guess_text(rows: datasets.Dataset, kind: str | None, labels: Sequence[str]) -> tuple[str, ...]:
    """One text column, or two for a pair; --task pair and --task classification decide which."""
    if kind != "classification":
        for names in PAIR_COLUMNS:
            pair = [name for name in _columns_named(rows, names) if name not in labels]
            if len(pair) == 2:
                return tuple(pair)
    others = [name for name in rows.column_names if name not in labels]
    texts = [name for name in others if _holds_texts(_sample(rows, name))]
    if kind == "pair":
        if len(texts) != 2:
            raise RowError(
                f"{source_name(rows)} has {len(texts)} columns that could be texts "
                f"({', '.join(map(repr, texts))}), expected two for a pair; "
                "say which with --text A --text B."
            )
        return tuple(texts)
    for name in others:
        if name.casefold() == "text":
            return (name,)
    return (_only_candidate(rows, _text_candidates(rows, texts, others), "text", "--text"),)


def _text_candidates(rows: datasets.Dataset, texts: list[str], others: list[str]) -> list[str]:
    """The columns that may be the text: by values, by name, or because no other is left."""
    candidates = texts or _columns_named(rows, TEXT_COLUMNS)
    if not candidates and len(others) == 1:
        candidates = others
    known = [name for name in candidates if name.casefold() in TEXT_COLUMNS]
    if len(candidates) > 1 and len(known) == 1:
        return known
    return candidates


def _holds_texts(values: list[Any]) -> bool:
    """Whether values look like texts: strings, not short, and mostly different."""
    if not values or not all(isinstance(value, str) for value in values):
        return False
    mean_characters = sum(map(len, values)) / len(values)
    mostly_different = 2 * len(set(values)) > len(values)
    return mean_characters >= MIN_TEXT_CHARACTERS and mostly_different


def _only_candidate(
    rows: datasets.Dataset, candidates: Sequence[str], what: str, option: str
) -> str:
    """The candidate, if there is exactly one. Raises RowError otherwise."""
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(map(repr, candidates))
        problem = f"several columns that could be the {what} ({listed})"
    else:
        problem = f"no column that looks like the {what}"
    hint = _answer_hint(rows)
    if what == "label":
        hint += _one_hot_hint(rows, candidates) or _header_hint(rows, candidates)
    raise RowError(
        f"{source_name(rows)} has {problem}; it has {rows.column_names}. "
        f"Say which one with {option}.{hint}"
    )


def _one_hot_hint(rows: datasets.Dataset, candidates: Sequence[str]) -> str:
    """What to write where each label has a column of 0 and 1, with a space before it."""
    columns = [name for name in candidates if {str(v) for v in _sample(rows, name)} <= TRUTH_VALUES]
    if len(columns) < 2:
        return ""
    return f" If each of them is a label of its own: --label {','.join(columns)}."


def _header_hint(rows: datasets.Dataset, candidates: Sequence[str]) -> str:
    """What to write where the first line may be a row and no header, with a space before it."""
    sentences = [name for name in rows.column_names if len(name.split()) > WORDS_OF_A_NAME]
    if candidates or not sentences:
        return ""
    return (
        f" {sentences[0]!r} looks like a text and not like a column's name: if the file has no "
        "line of names, give them with --columns, such as --columns text,label."
    )


def _answer_hint(rows: datasets.Dataset) -> str:
    """What to write where a column seems to hold answers to prompts, with a space before it."""
    answers = _columns_named(rows, OUTPUT_COLUMNS)
    prompts = _columns_named(rows, PROMPT_COLUMNS)
    if not answers or not prompts:
        return ""
    return (
        f" To learn {answers[0]!r} as the answer to {prompts[0]!r}: --task instruction --text "
        f'{prompts[0]} --label {answers[0]} --prompt "{{input}}".'
    )
