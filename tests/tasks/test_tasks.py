"""Every task keeps the contract of tasks, on encoders and decoders."""

import pytest
from task_checks import check_task

from peftcls import Answer, Classification, Instruction, Regression
from peftcls.data.reading import as_dataset

TEXTS = [
    "the patient recovered",
    "stock prices fell after the bank raised rates",
    "a galaxy far away emits radio waves",
    "see you at lunch",
    "a new drug was given",
    "free prize, call now! free prize, call now!",
]
LONG = [
    "the patient was given a new drug and recovered, see you at lunch " * n for n in (1, 3, 2, 4)
]
LABELS = ["no", "yes", "no", "maybe", "yes", "maybe"]
SETS = [["no"], ["yes", "maybe"], ["maybe", "no"], [], ["yes"], ["no", "yes", "maybe"]]
VOTES = [
    {"no": 3, "yes": 1},
    {"yes": 1},
    {"no": 2, "maybe": 1},
    {"maybe": 0.75, "no": 0.25},
    {"yes": 5, "no": 2},
    {"maybe": 1, "yes": 0},
]
NUMBERS = ["3.5", "-1", " 2.25", "7", "0", "1e1"]
KEYWORDS = [
    "patient; cure",
    "bank; prices",
    "galaxy; astronomy; waves",
    "lunch; food",
    "drug; trial",
    "prize; spam",
]
PAIR = {"text": ("text", "second")}
READ = {
    "input": "text",
    "output": "target",
    "template": "Text: {input}\nAnswer: ",
    "max_length": 96,
    "max_new_tokens": 16,
}


def rows_of(targets, texts=TEXTS):
    second = [*texts[2:], *texts[:2]]
    return [
        {"text": a, "second": b, "target": target}
        for a, b, target in zip(texts, second, targets, strict=False)
    ]


def one_label(name):
    return Answer(
        label=name, probabilities={label: float(label == name) for label in ("maybe", "no", "yes")}
    )


def label_set(names):
    return Answer(
        labels=names,
        probabilities={label: float(label in names) for label in ("maybe", "no", "yes")},
    )


def head(**settings):
    return Classification(label="target", max_length=64, **settings)


def listed(row):
    return tuple(row["target"].split("; "))


def right_set(row):
    return label_set(tuple(row["target"]))


def right_label(row):
    votes = row["target"]
    return one_label(votes if isinstance(votes, str) else max(votes, key=votes.get))


def right_number(row):
    return Answer(value=float(row["target"]))


CLASSIFICATION = {
    "one label": (head(), LABELS, TEXTS, right_label),
    "pair": (head(**PAIR), LABELS, TEXTS, right_label),
    "yes-or-no questions": (head(loss="bce"), LABELS, TEXTS, right_label),
    "focal": (head(loss="focal", class_weight="balanced"), LABELS, TEXTS, right_label),
    "smoothed": (head(label_smoothing=0.1, sampling="balanced"), LABELS, TEXTS, right_label),
    "soft targets": (head(class_weight={"no": 2.5}), VOTES, TEXTS, right_label),
    "label sets": (head(multi_label=True), SETS, TEXTS, right_set),
    "windows": (head(long_text="windows"), LABELS, LONG, right_label),
    "windows of pairs": (
        Classification(label="target", max_length=96, long_text="windows", **PAIR),
        LABELS,
        LONG,
        right_label,
    ),
    "cut": (Classification(label="target", max_length=12), LABELS, TEXTS, right_label),
}
REGRESSION = {
    "number": (Regression(target="target", max_length=64), NUMBERS, TEXTS, right_number),
    "number of a pair": (
        Regression(target="target", max_length=64, **PAIR),
        NUMBERS,
        TEXTS,
        right_number,
    ),
    "number of windows": (
        Regression(target="target", max_length=32, long_text="windows"),
        NUMBERS,
        LONG,
        right_number,
    ),
}
INSTRUCTION = {
    "answers": (Instruction(labels=("no", "yes", "maybe"), **READ), LABELS, TEXTS, right_label),
    "keywords": (
        Instruction(separator=";", **READ),
        KEYWORDS,
        TEXTS,
        lambda row: Answer(text=row["target"], labels=listed(row)),
    ),
    "free text": (Instruction(**READ), LABELS, TEXTS, lambda row: Answer(text=row["target"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFICATION | REGRESSION)
def test_a_task_with_a_head_keeps_the_contract_on_an_encoder(kind, bert):
    task, targets, texts, right = (CLASSIFICATION | REGRESSION)[kind]
    check_task(task, bert, rows_of(targets, texts), right=right)


@pytest.mark.parametrize(
    "kind", ["one label", "pair", "label sets", "windows", "windows of pairs", "number"]
)
def test_a_task_with_a_head_keeps_the_contract_on_a_decoder(kind, request):
    task, targets, texts, right = (CLASSIFICATION | REGRESSION)[kind]
    base = request.getfixturevalue("gpt2" if "pair" in kind else "llama")
    check_task(task, base, rows_of(targets, texts), right=right)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", INSTRUCTION)
def test_an_instruction_keeps_the_contract(kind, base, request):
    task, targets, texts, right = INSTRUCTION[kind]
    sides = (
        ["right"] if base == "gpt2" else ["right", "left"]
    )  # GPT-2 counts positions from the first place, padding or not
    check_task(
        task, request.getfixturevalue(base), rows_of(targets, texts), right=right, sides=sides
    )


def test_balanced_weights_are_balanced_anew_with_new_rows():
    rows = [{"text": "a", "label": label} for label in ["no"] * 8 + ["yes"] * 2]
    learnt = Classification(class_weight="balanced").learn(rows)
    new = [{"text": "b", "label": label} for label in ["yes"] * 9 + ["maybe"]]
    extended = learnt.extended(as_dataset(rows + new))
    assert extended.class_weight == pytest.approx({"no": 20 / 24, "yes": 20 / 33, "maybe": 20 / 3})
    own = Classification(class_weight={"no": 2.0, "yes": 3.0}).learn(rows)
    assert own.extended(as_dataset(new)).class_weight == {
        "no": 2.0,
        "yes": 3.0,
    }
