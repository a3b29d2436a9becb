"""Examine rows: each kind of problem is found in its row, and good rows give no finding."""

import json
import random
import time

import pytest

import peftcls
from peftcls import Classification, ExtractiveQA, Instruction, Regression, examine_rows, read_rows
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.quality.column_rules import ColumnProperties
from peftcls.quality.examine import refuse_errors
from peftcls.quality.text_checks import text_faults

WORDS = [
    "patient",
    "drug",
    "trial",
    "heart",
    "lung",
    "galaxy",
    "market",
    "bank",
    "radio",
    "river",
    "stone",
    "music",
    "winter",
    "letter",
]
NAMES = ["Miller", "Okafor", "Tanaka", "Silva", "Novak", "Haddad", "Larsen", "Kowal"]
FIRST = ["Anna", "Bo", "Chidi", "Dana", "Emi", "Farid"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of different lengths, without a clue to anything."""
    rng = random.Random(seed)
    return [
        f"{' '.join(rng.choices(WORDS, k=rng.randint(4, 12)))} {seed} {n}" for n in range(count)
    ]


def rows(count: int = 60, seed: int = 0, labels: tuple = ("no", "yes")) -> list[dict]:
    rng = random.Random(seed + 1000)
    return [
        {"text": text, "label": labels[rng.randrange(len(labels))]} for text in texts(count, seed)
    ]


def found(examination: peftcls.Examination, what: str) -> list[peftcls.Finding]:
    return [finding for finding in examination.findings if finding.what == what]


def one(examination: peftcls.Examination, what: str) -> peftcls.Finding:
    (finding,) = found(examination, what)
    return finding


def test_good_rows_have_no_finding():
    assert examine_rows(Classification(), rows(200), rows(40, 1), rows(40, 2)).findings == ()


# Labels


def test_a_label_that_training_never_saw_is_an_error_in_the_split_that_has_it():
    finding = one(
        examine_rows(
            Classification(), rows(), rows(20, 1), [*rows(9, 2), {"text": "odd", "label": "maybe"}]
        ),
        "unseen-label",
    )
    assert (finding.severity, finding.split, finding.rows, finding.count) == (
        "error",
        "test",
        (10,),
        1,
    )
    assert "'maybe'" in finding.sentence
    assert "these have 'yes', 'no'" in finding.sentence


def test_a_label_that_the_task_does_not_have_is_an_error_and_one_without_rows_a_warning():
    table = [*rows(), *[{"text": t, "label": "maybe"} for t in texts(6, 3)]]
    examination = examine_rows(Classification(labels=("no", "yes", "perhaps")), table)
    assert one(examination, "unknown-label").rows == (61, 62, 63, 64, 65)
    assert one(examination, "unknown-label").severity == "error"
    assert "'perhaps'" in one(examination, "untrained-label").sentence
    assert not found(examination, "bad-row")


def test_a_rare_label_is_a_warning_and_one_that_validation_lacks_a_note():
    examination = examine_rows(
        Classification(),
        [*rows(), *[{"text": t, "label": "third"} for t in texts(4, 3)]],
        rows(30, 1),
    )
    assert (one(examination, "rare-label").severity, one(examination, "rare-label").count) == (
        "warning",
        4,
    )
    assert (one(examination, "absent-label").severity, one(examination, "absent-label").split) == (
        "note",
        "valid",
    )
    assert not found(
        examine_rows(
            Classification(), [*rows(), *[{"text": t, "label": "third"} for t in texts(5, 3)]]
        ),
        "rare-label",
    )


def test_many_labels_with_the_same_problem_are_one_finding():
    table = [*rows(), *[{"text": t, "label": f"topic {n % 8}"} for n, t in enumerate(texts(16, 3))]]
    finding = one(examine_rows(Classification(), table), "rare-label")
    assert (finding.rows, finding.count) == ((61, 62, 63, 64, 65), 16)
    assert finding.sentence == (
        "the labels 'topic 0', 'topic 1', 'topic 2', 'topic 3', "
        "'topic 4' and 3 more are too rare to "
        "be learnt well: 16 training rows, expected at least 5 per label."
    )
    finding = one(examine_rows(Classification(labels=("no", "yes")), table), "unknown-label")
    assert (finding.severity, finding.count) == ("error", 16)
    assert one(examine_rows(Classification(), rows(), table), "unseen-label").count == 16


def test_a_column_with_a_different_value_in_every_row_is_not_a_column_of_labels():
    own = [{"text": t, "label": 0.37 * n} for n, t in enumerate(texts(20))]
    finding = one(examine_rows(Classification(), own), "own-label")
    assert finding.sentence == (
        "each of the 20 rows has a different label, such as '0'; choose a column whose labels "
        "repeat, or Regression for numbers."
    )
    assert not found(examine_rows(Classification(), own), "rare-label")
    for fewer in (own[:19], [*own, {"text": "once more", "label": 0.37}]):
        assert not found(examine_rows(Classification(), fewer), "own-label")


@pytest.mark.parametrize(
    "task",
    [
        Classification(),
        Instruction(template="{input}: ", input="text", output="label", labels=("no", "yes")),
    ],
)
def test_only_one_label_is_an_error(task):
    finding = one(examine_rows(task, rows(labels=("yes",))), "one-label")
    assert (finding.severity, finding.count) == ("error", 60)


@pytest.mark.parametrize(
    ("often", "rare"),
    [
        ("spam", "Spam"),
        ("spam", "SPAM "),
        ("new york", "new_york"),
        ("1", "1.0"),
        ("1", "True"),
        ("negative", "negativ"),
        ("neutral", "netural"),
    ],
)
def test_two_spellings_of_a_label_are_a_warning_that_names_both(often, rare):
    table = [
        *rows(100, labels=(often, "other thing")),
        *[{"text": t, "label": rare} for t in texts(2, 3)],
    ]
    finding = one(examine_rows(Classification(), table), "label-spelling")
    assert finding.severity == "warning"
    assert repr(often) in finding.sentence
    assert repr(rare.strip()) in finding.sentence
    assert finding.rows == (101, 102)


@pytest.mark.parametrize(
    ("often", "typo"),
    [
        ("spam", "spma"),
        ("ham", "hma"),
        ("spam", "sapm"),
        ("cat", "vat"),
        ("yes", "yess"),
        ("positive", "postive"),
    ],
)
def test_a_label_that_occurs_once_beside_a_near_one_is_asked_about_also_in_few_rows(often, typo):
    table = [*rows(20, labels=(often, "other thing")), {"text": "one more text", "label": typo}]
    finding = one(examine_rows(Classification(), table), "label-spelling")
    assert (finding.severity, finding.rows, finding.count) == ("warning", (21,), 1)
    assert finding.sentence.startswith(f"the label {typo!r} (1 row) may be {often!r} (")
    assert finding.sentence.endswith(f"Did you mean {often!r}?")


def test_a_label_that_no_row_or_no_task_knows_is_asked_about():
    bad = [*rows(30, 1), {"text": "one more text", "label": "Yes "}]
    asked = one(examine_rows(Classification(), rows(), bad), "unseen-label").sentence
    assert asked.endswith("put such rows into training. Did you mean 'yes'?")
    examination = examine_rows(
        Classification(labels=("no", "yes")), [*rows(), {"text": "one more text", "label": "yse"}]
    )
    assert one(examination, "unknown-label").sentence.endswith(
        "not among the task's labels 'no', 'yes'; correct the rows, or add the missing labels to "
        "labels=. Did you mean 'yes'?"
    )


def test_two_spellings_of_a_label_that_are_equally_frequent_are_both_named():
    examination = examine_rows(Classification(), rows(100, labels=("Spam", "spam", "ham")))
    counts = [{"text": t, "label": ("Spam", "spam")[n % 2]} for n, t in enumerate(texts(40))]
    for finding in (
        one(examination, "label-spelling"),
        one(examine_rows(Classification(), counts), "label-spelling"),
    ):
        assert "'Spam'" in finding.sentence
        assert "'spam'" in finding.sentence


@pytest.mark.parametrize(
    "labels",
    [("label 1", "label 2"), ("cat", "car"), ("important", "unimportant"), ("0", "1"), ("+", "-")],
)
def test_similar_labels_that_are_frequent_or_numbered_give_no_finding(labels):
    assert not found(examine_rows(Classification(), rows(100, labels=labels)), "label-spelling")


@pytest.mark.parametrize(("label", "notes"), [("N/A", 1), ("null", 1), ("nasal", 0), ("-", 0)])
def test_a_label_that_often_means_none_is_a_note(label, notes):
    examination = examine_rows(Classification(), rows(100, labels=("ham", label)))
    said = found(examination, "stand-in-label")
    assert [finding.severity for finding in said] == ["note"] * notes
    assert not examination.errors


def test_spaces_around_a_label_are_a_note_and_a_drift_of_its_kind_a_warning():
    train = [{"text": t, "label": n % 2} for n, t in enumerate(texts(40))]
    valid = [{"text": t, "label": ("0", "1 ")[n % 2]} for n, t in enumerate(texts(20, 1))]
    examination = examine_rows(Classification(), train, valid)
    assert (one(examination, "padded-label").severity, one(examination, "padded-label").count) == (
        "note",
        10,
    )
    assert one(examination, "label-kind").split == "train and valid"
    assert not examination.errors


def test_the_labels_of_rows_with_several_are_examined_too():
    train = [
        {"text": t, "label": [["a"], ["b"], ["a", "b"], []][n % 4]} for n, t in enumerate(texts(60))
    ]
    examination = examine_rows(
        Classification(multi_label=True), train, [{"text": "x y z", "label": ["a", "c"]}]
    )
    assert [(finding.what, finding.split) for finding in examination.findings] == [
        ("unseen-label", "valid"),
        ("few-rows", "valid"),
        ("absent-label", "valid"),
    ]


# Rows that say the same


def test_repeated_and_contradicting_rows_are_different_findings():
    added = [
        ("The  Same text", "no"),
        ("the same Text ", "no"),
        ("another  one", "no"),
        ("another one", "yes"),
    ]
    table = [*rows(), *[{"text": text, "label": label} for text, label in added]]
    examination = examine_rows(Classification(), table)
    assert (one(examination, "repeated-row").severity, one(examination, "repeated-row").rows) == (
        "note",
        (62,),
    )
    assert (one(examination, "contradiction").severity, one(examination, "contradiction").rows) == (
        "warning",
        (63, 64),
    )


def test_a_pair_is_the_same_only_where_both_of_its_texts_are():
    table = [{"sentence1": "a b", "sentence2": f"c {n}", "label": n % 2} for n in range(20)]
    assert not found(
        examine_rows(Classification(text=("sentence1", "sentence2")), table), "repeated-row"
    )


@pytest.mark.parametrize("shared", [1, 3, 20])
def test_texts_that_are_in_two_splits_are_counted(shared):
    train = rows()
    valid = [
        *[{**row, "text": row["text"].upper() + " "} for row in train[:shared]],
        *rows(20 - shared, 1),
    ]
    finding = one(examine_rows(Classification(), train, valid), "leak")
    assert (finding.severity, finding.count, finding.split) == (
        "warning",
        shared,
        "train and valid",
    )
    assert finding.rows == tuple(range(1, shared + 1))[:5]


# Label leakage: columns that give the label away


def author(style: bool, rng: random.Random) -> str:
    people = [(rng.choice(FIRST), rng.choice(NAMES)) for _ in range(rng.randint(1, 4))]
    if style:
        return "; ".join(f"{last}, {first}" for first, last in people)
    return ", ".join(f"{first[0]}. {last}" for first, last in people)


@pytest.mark.parametrize("text", ["text", ("author", "text")])
def test_a_column_whose_formatting_leaks_the_label_is_found_whether_it_is_read_or_not(text):
    rng = random.Random(0)
    table = [{**row, "author": author(row["label"] == "yes", rng)} for row in rows(300)]
    finding = one(examine_rows(Classification(text=text), table), "giveaway")
    assert finding.severity == "warning"
    assert "column 'author' leaks the label" in finding.sentence


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("by value", lambda yes, rng: rng.choice(["p", "q"] if yes else ["r", "s"])),
        ("by a number", lambda yes, rng: rng.random() + yes),
        ("by being empty", lambda yes, rng: "" if yes else rng.choice(NAMES)),
        ("by a space", lambda yes, rng: rng.choice(NAMES) + " " * yes),
        ("by a full stop", lambda yes, rng: rng.choice(NAMES) + "." * yes),
        ("by its case", lambda yes, rng: rng.choice(NAMES).lower() if yes else rng.choice(NAMES)),
        (
            "by its quotes",
            lambda yes, rng: (
                f"\u201c{rng.choice(NAMES)}\u201d" if yes else f'"{rng.choice(NAMES)}"'
            ),
        ),
        (
            "by its length",
            lambda yes, rng: "x" * rng.randint(1, 9) if yes else "x" * rng.randint(10, 19),
        ),
    ],
)
def test_one_property_of_a_column_is_enough_to_find_label_leakage(name, leak):
    rng = random.Random(0)
    table = [{**row, "extra": leak(row["label"] == "yes", rng)} for row in rows(300)]
    assert "column 'extra'" in one(examine_rows(Classification(), table), "giveaway").sentence, name


@pytest.mark.parametrize(
    "extra",
    [
        lambda yes, rng: f"id-{rng.random()}",
        lambda yes, rng: rng.choice(NAMES),
        lambda yes, rng: "x" * (rng.randint(1, 20) + 4 * yes),
        lambda yes, rng: author(yes == (rng.random() < 0.8), rng),
        lambda yes, rng: rng.random(),
    ],
)
@pytest.mark.parametrize("count", [30, 60, 400])
def test_a_weak_clue_or_a_column_with_a_value_for_every_row_is_no_label_leakage(extra, count):
    rng = random.Random(0)
    table = [{**row, "extra": extra(row["label"] == "yes", rng)} for row in rows(count)]
    assert not found(examine_rows(Classification(), table), "giveaway")


def test_a_column_that_fits_only_the_frequent_label_is_no_label_leakage():
    table = [{**row, "extra": "same"} for row in rows(400, labels=("rare", *["often"] * 19))]
    assert not found(examine_rows(Classification(), table), "giveaway")


def test_the_score_of_a_rule_is_that_of_held_out_rows():
    properties = ColumnProperties(["x"])
    rng = random.Random(0)
    for n in range(400):
        properties.add({"x": f"unique {n:03d}"})
    labels = [rng.choice("ab") for _ in range(400)]
    (leak,) = properties.leaking_columns(labels, min_recall=0.0)
    assert leak.recall < 0.7
    assert leak.chance == 0.5


# Texts


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("a plain text", []),
        (
            "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u2013 \u201cquoted\u201d \u00a35 \u20ac5 "
            "Stra\u00dfe",
            [],
        ),
        ("\u65e5\u672c\u8a9e \u0420\u0443\u0441\u0441\u043a\u0438\u0439", []),
        ("caf\u00c3\u00a9", ["mojibake"]),
        ("it\u00e2\u20ac\u2122s", ["mojibake"]),
        ("na\u00c3\u00afve", ["mojibake"]),
        ("\u00c2\u00a35", ["mojibake"]),
        ("lost \ufffd", ["lost-character"]),
        ("a\x00b", ["control-character"]),
        ("it\x92s", ["control-character"]),
        ("tab\tand\nline\r\n", []),
        ("fish &amp; chips", ["html-entity"]),
        ("&#39;x&#39;", ["html-entity"]),
        ("AT&T; R&D;", []),
        ("a<br />b", ["html-tag"]),
        ("p < 0.05 and q > 3", []),
        ("...", ["no-word"]),
        ("ok", ["near-empty"]),
        ("42!", []),
    ],
)
def test_damage_in_a_text_is_found_and_good_texts_have_no_faults(text, codes):
    assert text_faults(text) == codes


def test_damaged_texts_are_reported_by_column_and_row():
    table = [
        *rows(),
        {"text": "caf\u00c3\u00a9 &amp; bar", "label": "no"},
        {"text": "!", "label": "yes"},
    ]
    examination = examine_rows(Classification(), table)
    assert {(f.what, f.rows) for f in examination.findings} == {
        ("mojibake", (61,)),
        ("html-entity", (61,)),
        ("no-word", (62,)),
    }
    assert all("column 'text'" in f.sentence for f in examination.findings)


def test_rows_that_the_task_cannot_read_are_errors_grouped_by_kind():
    table = [
        *rows(),
        *[{"text": "", "label": "yes"}] * 7,
        {"text": "x y", "label": None},
        {"text": "x z", "label": ""},
    ]
    bad = found(examine_rows(Classification(), table), "bad-row")
    assert [(f.severity, f.count, f.rows) for f in bad] == [
        ("error", 7, (61, 62, 63, 64, 65)),
        ("error", 2, (68, 69)),
    ]
    assert (
        bad[0].sentence == "row 61 has no text in column 'text'; fill it in or leave the row out."
    )


def test_a_bad_table_or_a_missing_column_is_an_error_and_not_an_exception():
    mixed = [{"text": "a", "label": 1}, {"text": "b", "label": "x"}]
    examination = examine_rows(Classification(), mixed, [{"text": "a"}], 5)
    assert [(f.what, f.split) for f in examination.errors] == [
        ("no-table", "train"),
        ("no-column", "valid"),
        ("no-table", "test"),
    ]


# Lengths


def test_lengths_in_tokens_are_reported_and_shortened_rows_counted(bert):
    task = Classification(max_length=16)
    tokenizer = peftcls.load_base(bert, Classification(labels=("no", "yes")))[1]
    short, long = (
        [text * times for times in range(first, last)]
        for text, first, last in (("yes ", 1, 10), ("the patient ", 20, 26))
    )
    table = [
        {"text": text, "label": label}
        for label, found_texts in (("no", short), ("yes", long))
        for text in found_texts
    ]
    examination = examine_rows(task, table, tokenizer=tokenizer)
    assert (one(examination, "shortened").severity, one(examination, "shortened").count) == (
        "warning",
        6,
    )
    assert one(examination, "shortened").rows == (10, 11, 12, 13, 14)
    assert "100 % at most 52" in one(examination, "tokens").sentence
    assert "is 16" in one(examination, "tokens").sentence
    read = examine_rows(
        Classification(max_length=16, long_text="windows"), table, tokenizer=tokenizer
    )
    assert (one(read, "windows").severity, one(read, "windows").count) == ("note", 6)


def test_texts_that_are_compared_are_no_windows(bert):
    tokenizer = load_tokenizer_only(bert)
    texts = ("yes " * 8).strip(), ("yes " * 10).strip()
    table = [{"a": texts[0], "b": texts[1], "label": number % 2} for number in range(8)]
    task = Classification(text=("a", "b"), max_length=24, pooling="compare")
    examination = examine_rows(task, table, tokenizer=tokenizer)
    assert not {finding.what for finding in examination.findings} & {"shortened", "windows"}


@pytest.mark.parametrize(
    "task",
    [
        Classification(max_length=70, labels=("no", "yes")),
        Classification(text=("text", "more"), max_length=90, labels=("no", "yes")),
        Instruction(
            template="Read this.\n{more}\n{input}\nAnswer: ",
            input="text",
            output="label",
            labels=("no", "yes"),
            max_length=120,
            max_new_tokens=8,
        ),
        Instruction(
            template="{input}: ", input="text", output="label", max_length=90, max_new_tokens=20
        ),
    ],
)
def test_the_rows_that_are_shortened_are_those_that_encoding_would_shorten(llama, task):
    rng = random.Random(0)
    tokenizer = peftcls.load_base(llama, task)[1]
    table = [
        {
            "text": "the patient " * rng.randint(1, 50),
            "more": "stock " * rng.randint(1, 9),
            "label": rng.choice(["no", "yes"]),
        }
        for _ in range(150)
    ]
    expected = [
        number
        for number, row in enumerate(table, 1)
        if task.encode(row, tokenizer, with_target=True)["shortened"]
    ]
    finding = one(examine_rows(task, table, tokenizer=tokenizer), "shortened")
    assert (finding.count, list(finding.rows)) == (len(expected), expected[:5])
    assert 5 < len(expected) < 145


def test_the_limit_is_that_of_the_model_where_it_has_fewer_positions(bert):
    tokenizer = load_tokenizer_only(bert)
    table = [
        {"text": "the patient " * (200 if n == 3 else 2) + str(n), "label": "yn"[n % 2]}
        for n in range(20)
    ]
    examination = examine_rows(Classification(max_length=9999), table, tokenizer=tokenizer)
    assert one(examination, "tokens").sentence.endswith(
        "is 256: the model has no more positions, fewer than max_length=9999."
    )
    assert one(examination, "shortened").rows == (4,)
    assert (
        "the model cannot read more at once, so use long_text='windows'"
        in one(examination, "shortened").sentence
    )


def test_too_few_rows_to_evaluate_on_are_a_warning():
    examination = examine_rows(Classification(), rows(), rows(1, 1), rows(19, 2))
    assert [(f.severity, f.split) for f in found(examination, "few-rows")] == [
        ("warning", "valid"),
        ("warning", "test"),
    ]
    sentence = (
        "1 row to evaluate on, expected at least 20; one row changes a score by 100%, "
        "and confidence intervals say little."
    )
    assert found(examination, "few-rows")[0].sentence == sentence
    assert not found(examine_rows(Classification(), rows(), rows(20, 1)), "few-rows")


def test_nothing_is_trained_on_while_an_error_stands_in_any_split():
    with pytest.raises(
        peftcls.RowError, match=r"^test rows: the label 'maybe' is in no training row"
    ):
        refuse_errors(
            Classification(), rows(), rows(30, 1), [*rows(30, 2), {"text": "odd", "label": "maybe"}]
        )
    assert refuse_errors(Classification(), rows(), rows(3, 1)).findings


def test_a_prompt_that_no_shortening_can_fit_is_an_error(llama):
    task = Instruction(
        template="{title} {input}: ", input="text", output="label", max_length=40, max_new_tokens=8
    )
    tokenizer = peftcls.load_base(llama, task)[1]
    table = [{**row, "title": "1 " * (40 if n == 7 else 2)} for n, row in enumerate(rows(20))]
    assert one(examine_rows(task, table, tokenizer=tokenizer), "bad-row").rows == (8,)


# Instructions, numbers, questions


def test_an_answer_with_another_list_separator_is_a_warning():
    task = Instruction(template="{input}: ", input="text", output="keywords", separator=";")
    table = [
        {"text": t, "keywords": "alpha, beta, gamma" if n == 4 else "alpha; beta, so called; gamma"}
        for n, t in enumerate(texts(20))
    ]
    assert one(examine_rows(task, table), "list-separator").rows == (5,)


def test_targets_that_are_no_numbers_all_one_number_or_far_off_are_found():
    def table(*values):
        return [{"text": t, "score": v} for t, v in zip(texts(len(values)), values, strict=True)]

    normal = [float(n % 7) for n in range(50)]
    assert one(examine_rows(Regression(), table(*normal, 4000.0)), "outlier").rows == (51,)
    assert not examine_rows(Regression(), table(*normal)).findings
    assert one(examine_rows(Regression(), table(*[3.0] * 9)), "constant-target").severity == "error"
    marked = one(examine_rows(Regression(), table("950", "1.034", "2.500")), "thousands")
    assert marked.rows == (2, 3)
    comma = Regression(decimal=",")
    assert one(examine_rows(comma, table("950", "1,034", "2,500")), "thousands").rows == (2, 3)
    assert not examine_rows(Regression(), table("0.875", "1.125", "2.500")).findings
    assert [
        f.rows
        for f in found(
            examine_rows(Regression(), table(*normal, float("inf"), float("nan"))), "bad-row"
        )
    ] == [(51,), (52,)]


def test_numbers_in_other_units_than_in_the_first_training_are_a_warning():
    first = [{"text": t, "score": float(n % 7)} for n, t in enumerate(texts(50))]
    task = Regression().learn(first)
    assert not examine_rows(task, first).findings
    other = one(
        examine_rows(task, [{**row, "score": 20 * row["score"]} for row in first]), "other-scale"
    )
    assert (other.severity, other.sentence) == (
        "warning",
        "the median target is 60, 28 deviations from the mean 2.94 of the first training; "
        "use the same units, or start a new training.",
    )


def squad(tmp_path, paragraphs):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    return read_rows(path)


def ask(number, text, start, question="Who came?", **more):
    return {
        "id": str(number),
        "question": question,
        "answers": [{"text": text, "answer_start": start}],
        **more,
    }


def test_what_is_odd_about_answers_is_found_in_its_row(tmp_path, bert):
    context = "Ada Lovelace came to the harbour. Nobody else was seen there that winter."
    table = squad(
        tmp_path,
        [
            {
                "context": context,
                "qas": [ask(1, "Ada Lovelace", 0), ask(2, "harbour", 3), ask(3, "love", 24 + 90)],
            },
            {"context": "nobody asks"},
            {
                "context": context + " ",
                "qas": [
                    ask(4, "inter", context.index("inter")),
                    ask(4, "Ada", 0),
                    ask(5, context[:60], 0),
                ],
            },
        ],
    )
    tokenizer = peftcls.load_base(bert, Classification(labels=("no", "yes")))[1]
    examination = examine_rows(ExtractiveQA(max_answer_tokens=15), table, tokenizer=tokenizer)
    assert {
        f.what: f.rows for f in examination.findings if f.what not in ("tokens", "contradiction")
    } == {
        "bad-row": (3,),
        "duplicate-id": (5,),
        "moved-answer": (2,),
        "cut-word": (4,),
        "long-answer": (6,),
        "silent-paragraph": (),
    }
    assert {f.what for f in examination.errors} == {"bad-row", "duplicate-id"}


def test_a_question_that_is_both_possible_and_impossible_is_an_error():
    answer = {"text": ["Ada"], "answer_start": [0]}
    none = {"text": [], "answer_start": []}
    table = [
        {"question": f"Who {n}?", "context": f"Ada came {n}", "answers": a, "is_impossible": i}
        for n, (a, i) in enumerate([(answer, False), (none, True), (answer, True), (none, False)])
    ]
    examination = examine_rows(ExtractiveQA(), table)
    assert {(f.what, f.rows) for f in examination.errors} == {
        ("impossible-answered", (3,)),
        ("possible-unanswered", (4,)),
    }


def test_contexts_that_two_splits_share_are_counted():
    def table(*contexts):
        return [
            {"question": f"Who {n}?", "context": c, "answers": "Ada"}
            for n, c in enumerate(contexts)
        ]

    asked = [*table("x Ada"), {"question": "What?", "context": "Ada  two", "answers": "Ada"}]
    finding = one(
        examine_rows(ExtractiveQA(), table("Ada one", "Ada two"), asked), "shared-context"
    )
    assert finding.sentence.startswith("1 of 2 contexts of valid are also in train")


# The report


def test_an_examination_is_a_readable_table_errors_first_and_the_same_as_json():
    examination = examine_rows(
        Classification(),
        [*rows(), {"text": "ok", "label": "Yes"}, {"text": "", "label": "no"}],
        rows(20, 1),
    )
    lines = str(examination).splitlines()
    assert lines[0] == "62 rows of train, 20 rows of valid: 1 error, 2 warnings, 2 notes"
    assert [line.split()[0] for line in lines[1:]] == [
        "error",
        "warning",
        "warning",
        "note",
        "note",
    ]
    sentence = "row 62 has no text in column 'text'; fill it in or leave the row out."
    assert lines[1].split(maxsplit=6) == ["error", "train", "bad-row", "1", "row:", "62", sentence]
    told = json.loads(json.dumps(examination.to_json()))
    assert told["errors"] == len(examination.errors) == 1
    assert [finding["what"] for finding in told["findings"]] == [
        finding.what for finding in examination.findings
    ]


def test_ten_thousand_rows_take_seconds():
    table = [{**row, "text": row["text"] * 10, "id": str(n)} for n, row in enumerate(rows(10_000))]
    started = time.process_time()
    examine_rows(Classification(), table)
    assert time.process_time() - started < 15  # about three on an idle core


def test_a_notebook_shows_the_findings_as_a_table_with_escaped_texts():
    table = rows(labels=("<b>no</b>", "yes"))
    examination = examine_rows(Classification(labels=("yes", "<i>")), table)
    page = examination._repr_html_()
    assert page.count("<tr>") == len(examination.findings) > 0
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert repr(examination) == str(examination)
