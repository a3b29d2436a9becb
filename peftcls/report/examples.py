"""The rows worth reading: confident errors, labels that may be wrong, spans and keywords missed."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import datasets

from peftcls.data.reading import Row, source_name
from peftcls.data.row_numbers import row_numbers
from peftcls.evaluation import NO_ANSWER
from peftcls.metrics import keyword_scores, keyword_words, span_f1
from peftcls.report.marked_text import Pieces, clip_text, mark_spans
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.spans import find_answers, gold_answers

# Of each kind.
MAX_EXAMPLES = 8
Answers = Sequence[Answer]
Table = Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is said of a row: a term, its values, and a tone: "good", "bad", "gap" or none."""

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
    """The probability, score or error by which it was chosen."""
    title: str = ""
    """What stands above the text: the question."""


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
        """The group without the texts of its rows."""
        examples = []
        for example in self.examples:
            values: dict[str, Any] = {"row": example.row, "number": example.number}
            for fact in example.facts:
                values[fact.term] = list(fact.values)
            examples.append(values)
        return {
            "title": self.title,
            "measure": self.measure,
            "found": self.found,
            "examples": examples,
        }


class SpanTask(Protocol):
    """The names of the columns of a task whose answers are spans."""

    question: str
    context: str
    answers: str


def choose_examples(
    task: Task, test: datasets.Dataset, answers: Mapping[str, Answers]
) -> list[Group]:
    """Choose the rows of a test table that its reader should see, by kind.

    Their numbers are those of the file.

    Args:
        task: that was answered.
        test: the rows that were answered.
        answers: of each system, the run's own first.
    """
    numbers = row_numbers(test)
    numbered = []
    for group in _groups(task, test, answers):
        examples = [
            dataclasses.replace(example, row=numbers[example.row - 1]) for example in group.examples
        ]
        numbered.append(dataclasses.replace(group, examples=tuple(examples)))
    return numbered


def _groups(task: Task, test: datasets.Dataset, answers: Mapping[str, Answers]) -> list[Group]:
    """The groups of examples of each kind of task; a row's number is its place in the table."""
    table: list[Row] = test.to_list()
    own_answers, *_ = answers.values()
    match task.answer_kind:
        case "number":
            return [_largest_errors(task, table, own_answers)]
        case "span":
            return [_wrong_spans(task, table, own_answers)]
        case "keywords":
            return [_worst_keywords(task, table, own_answers)]
        case "label_set":
            return [
                _wrong_label_sets(task, table, own_answers),
                _doubtful_set_labels(task, table, own_answers),
            ]
        case "label":
            return _label_groups(task, table, answers, source_name(test))
        case "text":
            return [_different_texts(task, table, own_answers)]


def _example(
    task: Task, table: Table, index: int, facts: Iterable[Fact], number: float | None = None
) -> Example:
    """An example with the beginning of its row's text."""
    return Example(index + 1, clip_text(task.text_of(table[index])), tuple(facts), number)


def _label_groups(
    task: Task, table: Table, answers: Mapping[str, Answers], source: str
) -> list[Group]:
    """Confident errors, and rows whose label is doubted by the model and by another system."""
    own_answers, *_ = answers.values()
    gold = [task.gold_of(row)[0] for row in table]
    wrong = [i for i, answer in enumerate(own_answers) if answer.label != gold[i]]
    judges = _varying_systems(answers)
    groups = [_confident_errors(task, table, own_answers, gold, wrong, judges)]
    if all(answer.probabilities for answer in own_answers):
        groups.append(_doubtful_labels(task, table, own_answers, gold, wrong, judges, source))
    return groups


def _varying_systems(answers: Mapping[str, Answers]) -> dict[str, Answers]:
    """The other systems that answer with more than one label; the rest say nothing about a row."""
    _, *others = answers
    varying = {}
    for name in others:
        if len({answer.label for answer in answers[name]}) > 1:
            varying[name] = answers[name]
    return varying


def _label_facts(
    index: int, gold: Sequence[str], own_answers: Answers, judges: Mapping[str, Answers]
) -> list[Fact]:
    facts = [
        Fact("labelled", (gold[index],), "good"),
        Fact("answered", (own_answers[index].label or NO_ANSWER,), "bad"),
    ]
    for name, answers in judges.items():
        facts.append(Fact(name, (answers[index].label or NO_ANSWER,)))
    return facts


def _confident_errors(
    task: Task,
    table: Table,
    own_answers: Answers,
    gold: Sequence[str],
    wrong: Sequence[int],
    judges: Mapping[str, Answers],
) -> Group:
    """Wrong answers, the most probable first; a row without an answer is none of them."""
    confidence = {}
    for i in wrong:
        if own_answers[i].label is not None:
            confidence[i] = max((own_answers[i].probabilities or {"": 0.0}).values())
    ranked = sorted(confidence, key=lambda i: -confidence[i])
    examples = [
        _example(
            task,
            table,
            i,
            _label_facts(i, gold, own_answers, judges),
            number=confidence[i] or None,
        )
        for i in ranked[:MAX_EXAMPLES]
    ]
    return Group(
        "Most confident errors",
        "Wrong answers, the most confident first: what the model has learnt that is not so.",
        "probability of its answer",
        tuple(examples),
        len(ranked),
    )


def _doubtful_labels(
    task: Task,
    table: Table,
    own_answers: Answers,
    gold: Sequence[str],
    wrong: Sequence[int],
    judges: Mapping[str, Answers],
    source: str,
) -> Group:
    """Rows whose label has a probability below 0.5, and is contradicted by another system."""
    belief = {i: (own_answers[i].probabilities or {})[gold[i]] for i in wrong}

    def is_contradicted(i: int) -> bool:
        return not judges or any(answers[i].label != gold[i] for answers in judges.values())

    doubtful = [i for i in wrong if belief[i] < 0.5 and is_contradicted(i)]
    doubtful.sort(key=lambda i: belief[i])
    contradiction = ""
    if judges:
        judge = "another system" if len(judges) > 1 else next(iter(judges))
        contradiction = f" and {judge} also contradicts"
    examples = [
        _example(task, table, i, _label_facts(i, gold, own_answers, judges), number=belief[i])
        for i in doubtful[:MAX_EXAMPLES]
    ]
    return Group(
        "Most likely mislabelled",
        f"The model gives the label in the table ({source}) little probability{contradiction}. "
        "Read these before blaming the model.",
        "probability of the label in the table",
        tuple(examples),
        len(doubtful),
    )


def _set_errors(
    task: Task, table: Table, own_answers: Answers
) -> tuple[list[set[str]], list[dict[str, float]]]:
    """The right labels of each row, and how far each label's probability is from 0 or 1."""
    gold = [set(task.gold_of(row)) for row in table]
    errors = []
    for answer, right in zip(own_answers, gold, strict=True):
        probabilities = answer.probabilities or {}
        errors.append({name: abs((name in right) - value) for name, value in probabilities.items()})
    return gold, errors


def _wrong_label_sets(task: Task, table: Table, own_answers: Answers) -> Group:
    """Rows with a wrong set of labels, the most confident mistake first."""
    gold, errors = _set_errors(task, table, own_answers)
    wrong = [i for i, answer in enumerate(own_answers) if set(answer.labels or ()) != gold[i]]
    wrong.sort(key=lambda i: -max(errors[i].values(), default=0.0))
    examples = [
        _example(
            task,
            table,
            i,
            _set_facts(sorted(gold[i]), own_answers[i].labels or (), form=str),
            number=max(errors[i].values(), default=None),
        )
        for i in wrong[:MAX_EXAMPLES]
    ]
    return Group(
        "Most confident errors",
        "Rows with a missed or an invented label, the most confident mistake first.",
        "how far the worst label's probability is from right",
        tuple(examples),
        len(wrong),
    )


def _doubtful_set_labels(task: Task, table: Table, own_answers: Answers) -> Group:
    """Single labels of rows that the model contradicts, the most confident first."""
    gold, errors = _set_errors(task, table, own_answers)
    doubtful = []
    for i, by_label in enumerate(errors):
        for name, error in by_label.items():
            if error > 0.5:
                doubtful.append((error, i, name))
    doubtful.sort(key=lambda found: -found[0])
    examples = []
    for error, i, name in doubtful[:MAX_EXAMPLES]:
        fact = Fact("has" if name in gold[i] else "lacks", (name,), "bad")
        examples.append(_example(task, table, i, [fact], number=1 - error))
    return Group(
        "Most likely mislabelled",
        "Single labels that the table has, or lacks, against a confident model.",
        "probability that the table is right",
        tuple(examples),
        len(doubtful),
    )


def _set_facts(
    right: Sequence[str], answered: Sequence[str], form: Callable[[str], str]
) -> list[Fact]:
    """Found, missed and invented names; those of one form are the same."""
    right_by_key = {form(name): name for name in right}
    answered_by_key = {form(name): name for name in answered}
    found = [name for key, name in right_by_key.items() if key in answered_by_key]
    missed = [name for key, name in right_by_key.items() if key not in answered_by_key]
    invented = [name for key, name in answered_by_key.items() if key not in right_by_key]
    return [
        Fact("found", tuple(found), "good"),
        Fact("missed", tuple(missed), "gap"),
        Fact("invented", tuple(invented), "bad"),
    ]


def _worst_keywords(task: Task, table: Table, own_answers: Answers) -> Group:
    """Rows with the lowest F1 of their keywords first."""
    gold = [task.gold_of(row) for row in table]
    f1 = []
    for right, answer in zip(gold, own_answers, strict=True):
        f1.append(keyword_scores([right], [answer.labels or ()], [""])["f1"])
    worst = sorted(range(len(table)), key=lambda i: f1[i])
    examples = [
        _example(
            task,
            table,
            i,
            _set_facts(gold[i], own_answers[i].labels or (), form=keyword_words),
            number=f1[i],
        )
        for i in worst[:MAX_EXAMPLES]
    ]
    return Group(
        "Found, missed and invented",
        "The rows with the lowest F1 first.",
        "F1 of the row",
        tuple(examples),
        sum(value < 1 for value in f1),
    )


def _largest_errors(task: Task, table: Table, own_answers: Answers) -> Group:
    """Rows whose number is farthest from the target first."""
    targets = [float(task.gold_of(row)[0]) for row in table]
    predicted = [float(answer.value or 0.0) for answer in own_answers]
    errors = [value - target for value, target in zip(predicted, targets, strict=True)]
    worst = sorted(range(len(table)), key=lambda i: -abs(errors[i]))
    examples = []
    for i in worst[:MAX_EXAMPLES]:
        facts = [
            Fact("target", (f"{targets[i]:.4g}",), "good"),
            Fact("predicted", (f"{predicted[i]:.4g}",), "bad"),
        ]
        examples.append(_example(task, table, i, facts, number=errors[i]))
    return Group(
        "Farthest from the target",
        "The rows with the largest errors first.",
        "predicted minus target",
        tuple(examples),
        len(table),
        kind="plain",
    )


def _wrong_spans(task: Task, table: Table, own_answers: Answers) -> Group:
    """Answers without a right word first, the most confident of them first."""
    f1 = []
    for row, answer in zip(table, own_answers, strict=True):
        f1.append(span_f1(answer.text or "", task.gold_of(row)))
    wrong = [i for i in range(len(table)) if f1[i] < 1]
    wrong.sort(key=lambda i: (f1[i] > 0, -(own_answers[i].probability or 0.0)))
    examples = [_span_example(task, table, i, own_answers[i]) for i in wrong[:MAX_EXAMPLES]]
    return Group(
        "Most confident wrong answers",
        "First the answers that share no word with the right one, the most confident first.",
        "probability of its answer",
        tuple(examples),
        len(wrong),
    )


def _span_example(task: Task, table: Table, index: int, answer: Answer) -> Example:
    """An example whose text has the right and the answered spans marked."""
    row = table[index]
    columns = cast(SpanTask, task)
    context = row[columns.context]
    right = sorted(set(find_answers(context, gold_answers(row[columns.answers]))))
    answered = []
    if answer.text and answer.start is not None:
        answered = [(answer.start, answer.end or 0)]
    right_texts = dict.fromkeys(text or NO_ANSWER for text in task.gold_of(row))
    facts = (
        Fact("right", tuple(right_texts), "good"),
        Fact("answered", (answer.text or NO_ANSWER,), "bad"),
    )
    return Example(
        index + 1,
        mark_spans(context, right, answered),
        facts,
        answer.probability,
        title=row[columns.question],
    )


def _different_texts(task: Task, table: Table, own_answers: Answers) -> Group:
    """Rows whose text is not the right one, in the table's order."""
    wrong = []
    for i, row in enumerate(table):
        if (own_answers[i].text,) != task.gold_of(row):
            wrong.append(i)
    examples = []
    for i in wrong[:MAX_EXAMPLES]:
        facts = [
            Fact("right", task.gold_of(table[i]), "good"),
            Fact("answered", (own_answers[i].text or NO_ANSWER,), "bad"),
        ]
        examples.append(_example(task, table, i, facts))
    return Group(
        "Answers that differ",
        "In the order of the table.",
        "",
        tuple(examples),
        len(wrong),
    )
