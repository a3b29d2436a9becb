"""Whether one look at one column is enough to know the label: by its value, or by how it is written.

One rule from one property of one column, as OneR makes it (Holte 1993, "Very Simple Classification Rules Perform Well on
Most Commonly Used Datasets"), learnt on one half of the rows and scored on the other, both ways, so that a column with a
value of its own in every row explains nothing.
"""

import dataclasses
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FEWEST_ROWS = 40  # with fewer, an honest clue and an accident look alike
FEWEST_OF_A_LABEL = 8
MOST_LABELS = 50
BUCKET_ROWS, MOST_BUCKETS = (
    6,
    64,
)  # of a counted property: as many rows a bucket as Holte's rule asks for
LONGEST_CHARACTERS = 4000  # how a text is written shows in its beginning
INITIAL = re.compile(r"\b[A-Z]\b")
CAPITAL = re.compile(r"[A-Z]")
DIGIT = re.compile(r"[0-9]")
CAPITAL_WORD = re.compile(r"\b[A-Z][a-z]")

COUNTED: dict[str, Callable[[str], int]] = {
    "the number of its characters": len,
    "the number of its words": lambda text: len(text.split()),
    "the number of its lines": lambda text: text.count("\n"),
    "the number of double spaces in it": lambda text: text.count("  "),
    "the number of non-ASCII characters in it": lambda text: (
        0 if text.isascii() else sum(not c.isascii() for c in text)
    ),
    "the number of digits in it": lambda text: len(DIGIT.findall(text)),
    "the number of capital letters in it": lambda text: len(CAPITAL.findall(text)),
    "the number of single capital letters in it": lambda text: len(INITIAL.findall(text)),
    "the number of capitalised words in it": lambda text: len(CAPITAL_WORD.findall(text)),
    **{
        f"the number of {mark!r} in it": lambda text, mark=mark: text.count(mark)  # type: ignore[misc]
        for mark in (
            ";",
            ",",
            ".",
            ":",
            "!",
            "?",
            "'",
            '"',
            "\u2019",
            "\u201c",
            "(",
            "[",
            "<",
            "/",
            "-",
            "|",
            "&",
            "*",
            "_",
        )
    },
}
KEPT: dict[str, Callable[[str], Any]] = {
    "its value": lambda text: text,
    "its first character": lambda text: text[:1],
    "its last character": lambda text: text[-1:],
    "whether it begins with a capital letter": lambda text: text[:1].isupper(),
    "whether it has a space at an end": lambda text: text != text.strip(),
    "whether it is written in one case": lambda text: (text.isupper(), text.islower()),
    "what stands between the first two words": lambda text: "".join(
        re.findall(r"^\W*\w+(\W+)\w", text[:200])
    ),
}
AS_NUMBER = "its value as a number"


@dataclasses.dataclass(frozen=True)
class Giveaway:
    """A column that alone tells the label.

    Args:
        column: its name.
        rule: the property that tells, in the words of a sentence.
        recall: the mean over labels of the share of held-out rows that the rule labels right.
        chance: what always giving one label would reach.
    """

    column: str
    rule: str
    recall: float
    chance: float


class ColumnLooks:
    """Properties of the cells of some columns, a number each, gathered row by row without keeping a text."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._found = {
            column: {rule: array("d") for rule in (*COUNTED, *KEPT, AS_NUMBER)}
            for column in columns
        }

    def add(self, row: dict[str, Any]) -> None:
        """Look at the cells of one more row."""
        for column, rules in self._found.items():
            value = row[column]
            text = "" if value is None else str(value)[:LONGEST_CHARACTERS]
            for rule, of in COUNTED.items():
                rules[rule].append(of(text))
            for rule, kept in KEPT.items():
                rules[rule].append(hash(kept(text)) >> 11)  # a float holds 53 bits exactly
            rules[AS_NUMBER].append(_number(text))

    def giveaways(self, labels: Sequence[str], *, least: float, seed: int = 0) -> list[Giveaway]:
        """The best rule of each column whose held-out recall, averaged over the labels, is at least `least`.

        Args:
            labels: of the rows, in the order in which they were added.
            least: a share.
            seed: of the halves.
        """
        _, codes, counts = np.unique(
            np.array(labels, dtype=str), return_inverse=True, return_counts=True
        )
        frequent = counts >= FEWEST_OF_A_LABEL
        rows = np.flatnonzero(frequent[codes])
        if len(rows) < FEWEST_ROWS or not 2 <= frequent.sum() <= MOST_LABELS:
            return []
        codes = np.unique(codes[rows], return_inverse=True)[1]
        first = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0
        found = []
        for column, rules in self._found.items():
            scored = [
                (
                    _recall(
                        _buckets(np.array(values)[rows], counted=rule not in KEPT), codes, first
                    ),
                    rule,
                )
                for rule, values in rules.items()
            ]
            best, rule = max(scored, key=lambda pair: pair[0])
            if best >= least:
                found.append(Giveaway(column, rule, best, 1 / int(frequent.sum())))
        return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _buckets(values: np.ndarray, *, counted: bool) -> np.ndarray:
    """Values as small whole numbers: each its own, or for counts in order and, where they are many, several together."""
    kept, codes = np.unique(values, return_inverse=True)
    most = min(MOST_BUCKETS, max(2, len(values) // (2 * BUCKET_ROWS)))
    if not counted or len(kept) <= most:
        return codes
    edges = np.unique(np.nanquantile(values, np.linspace(0, 1, most + 1)[1:-1]))
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))


def _recall(buckets: np.ndarray, labels: np.ndarray, first: np.ndarray) -> float:
    """The mean recall over labels of the rule "the most frequent label of the bucket", each half answered by the other's rule."""
    width, right = labels.max() + 1, np.zeros(len(labels), dtype=bool)
    share = 1 / np.bincount(labels)  # of rows of a rare label each counts for more
    for half in (first, ~first):
        table = np.bincount(
            buckets[half] * width + labels[half],
            weights=share[labels[half]],
            minlength=(buckets.max() + 1) * width,
        )
        table = table.reshape(-1, width)
        rule = np.where(
            table.any(axis=1), table.argmax(axis=1), -1
        )  # what was never seen is not answered
        right[~half] = rule[buckets[~half]] == labels[~half]
    return float(np.mean(np.bincount(labels, weights=right) * share))
