"""The rows that are worth reading: confident errors, labels that may be wrong, spans and keywords that were missed."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import datasets

from peftcls.data.reading import Row, source_name
from peftcls.evaluation import NO_ANSWER
from peftcls.metrics import keyword_scores, span_f1
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.regression import Regression
from peftcls.tasks.spans import find_answers, gold_answers

SHOWN = 8
LONGEST, AROUND = 420, 160  # characters of a text, and of a context on both sides of a span
Pieces = tuple[tuple[str, str], ...]
"""A text in pieces, each with its mark: "" for none, "gold", "given" or "both"."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is said of a row: a term, its values, and whether they are "good", "bad" or neither."""

    term: str
    values: tuple[str, ...]
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """A row of the test table with what was right and what was answered."""

    row: int
    """Its number, from 1."""
    text: Pieces
    facts: tuple[Fact, ...]
    number: float | None = None
    """The probability, score or error that put it here."""
    title: str = ""
    """A text above the text: the question."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Examples of one kind, and what their number is: a "share" or "plain"."""

    title: str
    note: str
    measure: str
    examples: tuple[Example, ...]
    found: int
    """How many rows there are of this kind, shown or not."""
    kind: str = "share"

    def to_json(self) -> dict[str, Any]:
        """Without the texts."""
        return {
            "title": self.title,
            "measure": self.measure,
            "found": self.found,
            "examples": [
                {
                    "row": e.row,
                    "number": e.number,
                    **{fact.term: list(fact.values) for fact in e.facts},
                }
                for e in self.examples
            ],
        }


def choose_examples(
    task: Task, test: datasets.Dataset, answers: Mapping[str, Sequence[Answer]]
) -> list[Group]:
    """The rows of a test table that its reader should see, by kind; `answers` are of each system, the run's own first."""
    table: list[Row] = test.to_list()
    own, others = next(iter(answers.values())), dict(list(answers.items())[1:])
    if isinstance(task, Regression):
        return [_farthest(task, table, own)]
    if isinstance(task, ExtractiveQA):
        return [_wrong_spans(task, table, own)]
    if getattr(task, "separator", None) is not None:
        return [_keywords(task, table, own)]
    if own[0].labels is not None:
        return _label_sets(task, table, own)
    if getattr(task, "labels", None):
        return _labels(task, table, own, others, source_name(test))
    return [_texts(task, table, own)]


def _labels(
    task: Task,
    table: Sequence[Row],
    own: Sequence[Answer],
    others: Mapping[str, Sequence[Answer]],
    source: str,
) -> list[Group]:
    gold = [task.gold_of(row)[0] for row in table]
    wrong = [i for i, a in enumerate(own) if a.label != gold[i]]
    judges = {
        name: given for name, given in others.items() if len({a.label for a in given}) > 1
    }  # one that never varies says nothing

    def doubters(i: int) -> list[str]:
        return [name for name, given in judges.items() if given[i].label != gold[i]]

    def example(i: int, number: float | None) -> Example:
        facts = [
            Fact("labelled", (gold[i],), "good"),
            Fact("answered", (own[i].label or NO_ANSWER,), "bad"),
        ]
        facts += [Fact(name, (given[i].label or NO_ANSWER,)) for name, given in judges.items()]
        return Example(i + 1, _clipped(task.text_of(table[i])), tuple(facts), number)

    sure = {i: max((own[i].probabilities or {"": 0.0}).values()) for i in wrong}
    ranked = sorted((i for i in wrong if own[i].label is not None), key=lambda i: -sure[i])
    groups = [
        Group(
            "Most confident errors",
            "Wrong, and surest of it: what the model has learnt that is not so.",
            "probability of its answer",
            tuple(example(i, sure[i] or None) for i in ranked[:SHOWN]),
            len(ranked),
        )
    ]
    if all(a.probabilities for a in own):
        belief = [(a.probabilities or {})[gold[i]] for i, a in enumerate(own)]
        odd = sorted(
            (i for i in wrong if belief[i] < 0.5 and (doubters(i) or not judges)),
            key=lambda i: belief[i],
        )
        why = f" and {_either(judges)} also contradicts" if judges else ""
        groups.append(
            Group(
                "Most likely mislabelled",
                f"The model gives the label in {source} little probability{why}. "
                "Read these before blaming the model.",
                "probability of the label in the table",
                tuple(example(i, belief[i]) for i in odd[:SHOWN]),
                len(odd),
            )
        )
    return groups


def _either(names: Mapping[str, Any]) -> str:
    return "another system" if len(names) > 1 else next(iter(names))


def _label_sets(task: Task, table: Sequence[Row], own: Sequence[Answer]) -> list[Group]:
    gold = [set(task.gold_of(row)) for row in table]
    off = [
        {name: abs((name in right) - p) for name, p in (a.probabilities or {}).items()}
        for a, right in zip(own, gold, strict=True)
    ]
    wrong = sorted(
        (i for i, a in enumerate(own) if set(a.labels or ()) != gold[i]),
        key=lambda i: -max(off[i].values(), default=0.0),
    )
    doubted = sorted(
        (
            (i, name)
            for i, asked in enumerate(off)
            for name, distance in asked.items()
            if distance > 0.5
        ),
        key=lambda pair: -off[pair[0]][pair[1]],
    )
    sets = Group(
        "Most confident errors",
        "Rows with a missed or an invented label, the surest mistake first.",
        "how far the worst label's probability is from right",
        tuple(
            Example(
                i + 1,
                _clipped(task.text_of(table[i])),
                _set_facts(sorted(gold[i]), own[i].labels or ()),
                max(off[i].values(), default=None),
            )
            for i in wrong[:SHOWN]
        ),
        len(wrong),
    )
    labels = Group(
        "Most likely mislabelled",
        "Single labels that the table has, or lacks, against a confident model.",
        "probability that the table is right",
        tuple(
            Example(
                i + 1,
                _clipped(task.text_of(table[i])),
                (Fact("has" if name in gold[i] else "lacks", (name,), "bad"),),
                1 - off[i][name],
            )
            for i, name in doubted[:SHOWN]
        ),
        len(doubted),
    )
    return [sets, labels]


def _set_facts(right: Sequence[str], given: Sequence[str]) -> tuple[Fact, ...]:
    """Found, missed and invented; order and case do not count."""
    plain = {" ".join(name.casefold().split()): name for name in right}
    said = {" ".join(name.casefold().split()): name for name in given}
    return (
        Fact("found", tuple(name for key, name in plain.items() if key in said), "good"),
        Fact("missed", tuple(name for key, name in plain.items() if key not in said), "gap"),
        Fact("invented", tuple(name for key, name in said.items() if key not in plain), "bad"),
    )


def _keywords(task: Task, table: Sequence[Row], own: Sequence[Answer]) -> Group:
    gold = [task.gold_of(row) for row in table]
    f1 = [
        keyword_scores([right], [a.labels or ()], [""])["f1"]
        for right, a in zip(gold, own, strict=True)
    ]
    worst = sorted(range(len(table)), key=lambda i: f1[i])
    return Group(
        "Found, missed and invented",
        "The rows with the lowest F1 first.",
        "F1 of the row",
        tuple(
            Example(
                i + 1,
                _clipped(task.text_of(table[i])),
                _set_facts(gold[i], own[i].labels or ()),
                f1[i],
            )
            for i in worst[:SHOWN]
        ),
        sum(value < 1 for value in f1),
    )


def _farthest(task: Task, table: Sequence[Row], own: Sequence[Answer]) -> Group:
    pairs = [
        (float(task.gold_of(row)[0]), float(a.value or 0.0))
        for row, a in zip(table, own, strict=True)
    ]
    worst = sorted(range(len(table)), key=lambda i: -abs(pairs[i][1] - pairs[i][0]))
    return Group(
        "Farthest from the target",
        "The rows whose number was missed by most.",
        "predicted minus target",
        tuple(
            Example(
                i + 1,
                _clipped(task.text_of(table[i])),
                (
                    Fact("target", (f"{pairs[i][0]:.4g}",), "good"),
                    Fact("predicted", (f"{pairs[i][1]:.4g}",), "bad"),
                ),
                pairs[i][1] - pairs[i][0],
            )
            for i in worst[:SHOWN]
        ),
        len(table),
        kind="plain",
    )


def _wrong_spans(task: ExtractiveQA, table: Sequence[Row], own: Sequence[Answer]) -> Group:
    f1 = [span_f1(a.text or "", task.gold_of(row)) for row, a in zip(table, own, strict=True)]
    worst = sorted(
        (i for i in range(len(table)) if f1[i] < 1),
        key=lambda i: (f1[i] > 0, -(own[i].probability or 0.0)),
    )
    examples = []
    for i in worst[:SHOWN]:
        row, answer = table[i], own[i]
        right = sorted(set(find_answers(row[task.context], gold_answers(row[task.answers]))))
        given = (
            [(answer.start, answer.end or 0)] if answer.text and answer.start is not None else []
        )
        facts = (
            Fact(
                "right",
                tuple(dict.fromkeys(name or NO_ANSWER for name in task.gold_of(row))),
                "good",
            ),
            Fact("answered", (answer.text or NO_ANSWER,), "bad"),
        )
        examples.append(
            Example(
                i + 1,
                mark_spans(row[task.context], right, given),
                facts,
                answer.probability,
                row[task.question],
            )
        )
    return Group(
        "Most confident wrong answers",
        "Answers that share no word with the right one first, the surest of them first.",
        "probability of its answer",
        tuple(examples),
        len(worst),
    )


def _texts(task: Task, table: Sequence[Row], own: Sequence[Answer]) -> Group:
    wrong = [
        i
        for i, (row, a) in enumerate(zip(table, own, strict=True))
        if (a.text,) != task.gold_of(row)
    ]
    return Group(
        "Answers that differ",
        "In the order of the table.",
        "",
        tuple(
            Example(
                i + 1,
                _clipped(task.text_of(table[i])),
                (
                    Fact("right", task.gold_of(table[i]), "good"),
                    Fact("answered", (own[i].text or NO_ANSWER,), "bad"),
                ),
            )
            for i in wrong[:SHOWN]
        ),
        len(wrong),
    )


def _clipped(text: str) -> Pieces:
    return ((_head(text, LONGEST), ""),)


def _head(text: str, longest: int) -> str:
    """The beginning of a text, up to the end of a word where there is one."""
    return text if len(text) <= longest else text[: longest + 1].rsplit(" ", 1)[0][:longest] + " …"


def _tail(text: str, longest: int) -> str:
    return (
        text if len(text) <= longest else "… " + text[-longest - 1 :].split(" ", 1)[-1][-longest:]
    )


def mark_spans(
    text: str, gold: Sequence[tuple[int, int]], given: Sequence[tuple[int, int]]
) -> Pieces:
    """A text in pieces that are in the gold spans, in the given ones, in both or in neither; what is far from both is cut."""
    borders = sorted({0, len(text), *(place for span in (*gold, *given) for place in span)})
    marked = []
    for start, end in pairwise(borders):
        right, said = (any(a <= start and end <= b for a, b in spans) for spans in (gold, given))
        marked.append(
            (start, end, "both" if right and said else "gold" if right else "given" if said else "")
        )
    pieces = []
    for mark, alike in groupby(marked, key=lambda piece: piece[2]):
        run = list(alike)
        start, end = run[0][0], run[-1][1]
        pieces.append(
            (
                text[start:end]
                if mark
                else _shortened(text[start:end], first=start == 0, last=end == len(text)),
                mark,
            )
        )
    return tuple(pieces)


def _shortened(piece: str, *, first: bool, last: bool) -> str:
    """An unmarked piece, cut where it is far from a marked one; the whole text where nothing is marked."""
    if first and last:
        return _clipped(piece)[0][0]
    if first:
        return _tail(piece, AROUND)
    if last:
        return _head(piece, AROUND)
    return (
        piece
        if len(piece) <= 2 * AROUND
        else _head(piece, AROUND) + _tail(piece, AROUND).removeprefix("…")
    )
