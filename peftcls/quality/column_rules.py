"""Find columns that leak the label: by their value, or by how it is written.

One rule from one property of one column, as in OneR (Holte 1993, "Very Simple Classification Rules
Perform Well on Most Commonly Used Datasets"). A rule is learnt on one half of the rows and scored
on the other, both ways, so that a column with a different value in every row predicts nothing.
"""

import dataclasses
import functools
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# With fewer rows, a real clue and chance cannot be told apart.
MIN_ROWS = 40
MIN_ROWS_PER_LABEL = 8
MAX_LABELS = 50
# Counts are put into buckets of at least 6 rows, as in Holte's rule.
MIN_BUCKET_ROWS = 6
MAX_BUCKETS = 64
# The formatting of a text shows in its beginning.
MAX_READ_CHARACTERS = 4000
MAX_FIRST_WORDS_CHARACTERS = 200
# A float holds 53 of the 64 bits of a hash exactly.
HASH_SHIFT_BITS = 11

INITIAL = re.compile(r"\b[A-Z]\b")
CAPITAL = re.compile(r"[A-Z]")
DIGIT = re.compile(r"[0-9]")
CAPITALISED_WORD = re.compile(r"\b[A-Z][a-z]")
BETWEEN_FIRST_WORDS = re.compile(r"^\W*\w+(\W+)\w")
MARKS = (
    *(";", ",", ".", ":", "!", "?"),
    *("'", '"', "\u2019", "\u201c"),
    *("(", "[", "<", "/", "-", "|", "&", "*", "_"),
)


def _count_words(text: str) -> int:
    return len(text.split())


def _count_text(counted: str, text: str) -> int:
    return text.count(counted)


def _count_matches(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


def _count_non_ascii(text: str) -> int:
    if text.isascii():
        return 0
    return sum(not character.isascii() for character in text)


def _value(text: str) -> str:
    return text


def _first_character(text: str) -> str:
    return text[:1]


def _last_character(text: str) -> str:
    return text[-1:]


def _begins_with_capital(text: str) -> bool:
    return text[:1].isupper()


def _has_outer_space(text: str) -> bool:
    return text != text.strip()


def _letter_case(text: str) -> tuple[bool, bool]:
    return (text.isupper(), text.islower())


def _between_first_words(text: str) -> str:
    return "".join(BETWEEN_FIRST_WORDS.findall(text[:MAX_FIRST_WORDS_CHARACTERS]))


# Properties of a text, in the words of a message. Of several equally good ones the first is named.
COUNTS: dict[str, Callable[[str], int]] = {
    "the number of its characters": len,
    "the number of its words": _count_words,
    "the number of its lines": functools.partial(_count_text, "\n"),
    "the number of double spaces in it": functools.partial(_count_text, "  "),
    "the number of non-ASCII characters in it": _count_non_ascii,
    "the number of digits in it": functools.partial(_count_matches, DIGIT),
    "the number of capital letters in it": functools.partial(_count_matches, CAPITAL),
    "the number of single capital letters in it": functools.partial(_count_matches, INITIAL),
    "the number of capitalised words in it": functools.partial(_count_matches, CAPITALISED_WORD),
}
COUNTS.update(
    {f"the number of {mark!r} in it": functools.partial(_count_text, mark) for mark in MARKS}
)
CATEGORIES: dict[str, Callable[[str], Any]] = {
    "its value": _value,
    "its first character": _first_character,
    "its last character": _last_character,
    "whether it begins with a capital letter": _begins_with_capital,
    "whether it begins or ends with a space": _has_outer_space,
    "whether it is all upper or all lower case": _letter_case,
    "the characters between its first two words": _between_first_words,
}
AS_NUMBER = "its value as a number"


@dataclasses.dataclass(frozen=True)
class LeakingColumn:
    """A column that predicts the label by itself.

    Args:
        column: its name.
        rule: the property that predicts the label, in the words of a sentence.
        recall: the share of held-out rows whose label is predicted, averaged over the labels.
        chance: the recall of always predicting the same label.
    """

    column: str
    rule: str
    recall: float
    chance: float


class ColumnProperties:
    """Properties of the cells of some columns, one number each; no text is kept."""

    def __init__(self, columns: Sequence[str]) -> None:
        rules = (*COUNTS, *CATEGORIES, AS_NUMBER)
        self._values: dict[str, dict[str, array[float]]] = {}
        for column in columns:
            self._values[column] = {rule: array("d") for rule in rules}

    def add(self, row: dict[str, Any]) -> None:
        """Add the cells of one row."""
        for column, values in self._values.items():
            cell = row[column]
            text = "" if cell is None else str(cell)[:MAX_READ_CHARACTERS]
            for rule, count in COUNTS.items():
                values[rule].append(count(text))
            for rule, category in CATEGORIES.items():
                values[rule].append(hash(category(text)) >> HASH_SHIFT_BITS)
            values[AS_NUMBER].append(_as_number(text))

    def leaking_columns(
        self, labels: Sequence[str], *, min_recall: float, seed: int = 0
    ) -> list[LeakingColumn]:
        """Find the columns with a rule of at least `min_recall`, each with its best rule.

        Args:
            labels: of the rows, in the order in which they were added.
            min_recall: the share of held-out rows, averaged over the labels.
            seed: of the two halves.
        """
        names = np.array(labels, dtype=str)
        _, codes, counts = np.unique(names, return_inverse=True, return_counts=True)
        is_frequent = counts >= MIN_ROWS_PER_LABEL
        label_count = int(is_frequent.sum())
        rows = np.flatnonzero(is_frequent[codes])
        if len(rows) < MIN_ROWS or not 2 <= label_count <= MAX_LABELS:
            return []
        codes = np.unique(codes[rows], return_inverse=True)[1]
        is_first_half = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0
        leaking = []
        for column, values in self._values.items():
            recalls = {}
            for rule in values:
                buckets = _buckets(np.array(values[rule])[rows], is_ordered=rule not in CATEGORIES)
                recalls[rule] = _held_out_recall(buckets, codes, is_first_half)
            best_rule = max(recalls, key=lambda rule: recalls[rule])
            if recalls[best_rule] >= min_recall:
                leaking.append(
                    LeakingColumn(column, best_rule, recalls[best_rule], 1 / label_count)
                )
        return leaking


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _buckets(values: np.ndarray, *, is_ordered: bool) -> np.ndarray:
    """Number the values; neighbours of ordered values share a number if there are many."""
    different, codes = np.unique(values, return_inverse=True)
    bucket_count = min(MAX_BUCKETS, max(2, len(values) // (2 * MIN_BUCKET_ROWS)))
    if not is_ordered or len(different) <= bucket_count:
        return codes
    shares = np.linspace(0, 1, bucket_count + 1)[1:-1]
    edges = np.unique(np.nanquantile(values, shares))
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))


def _held_out_recall(buckets: np.ndarray, labels: np.ndarray, is_first_half: np.ndarray) -> float:
    """Score the rule "the most frequent label of the bucket"; each half is scored by the other's.

    Args:
        buckets: of each row.
        labels: of each row, from 0.
        is_first_half: of each row.

    Returns:
        The mean over the labels of the share of rows whose label is predicted.
    """
    label_count = labels.max() + 1
    bucket_count = buckets.max() + 1
    # Rows of a rare label have more weight.
    weights = 1 / np.bincount(labels)
    is_right = np.zeros(len(labels), dtype=bool)
    for half in (is_first_half, ~is_first_half):
        table = np.bincount(
            buckets[half] * label_count + labels[half],
            weights=weights[labels[half]],
            minlength=bucket_count * label_count,
        )
        table = table.reshape(-1, label_count)
        # Nothing is predicted for a bucket without rows in this half.
        predictions = np.where(table.any(axis=1), table.argmax(axis=1), -1)
        is_right[~half] = predictions[buckets[~half]] == labels[~half]
    return float(np.mean(np.bincount(labels, weights=is_right) * weights))
