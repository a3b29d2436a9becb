"""The report of a run: for each task the page shows what `metrics.json` holds, in any browser."""

import functools
import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from browser import needs_browser, shown_page
from PIL import Image

import peftcls
from peftcls import Answer, Classification, ExtractiveQA, Instruction, Regression
from peftcls.baselines import baselines
from peftcls.data.reading import as_dataset
from peftcls.metrics import calibration_bins, calibration_error
from peftcls.report import Meter, Run, wording, write_report
from peftcls.report.examples import choose_examples
from peftcls.report.marked_text import mark_spans
from peftcls.report.numbers import fingerprint_rows
from peftcls.report.verdict import TITLES
from peftcls.training.run_report import command_line, describe_run

HISTORY = [
    {"step": 5, "loss": 0.9},
    {"step": 5, "valid_loss": 0.8, "valid_f1_macro": 0.5, "valid_f1": 0.4, "valid_pearson": 0.3},
    {"step": 10, "loss": 0.4},
    {"step": 10, "valid_loss": 0.5, "valid_f1_macro": 0.75, "valid_f1": 0.6, "valid_pearson": 0.5},
]
RUN = Run(
    base={
        "name": "demo",
        "revision": None,
        "fingerprint": "ab" * 32,
        "quantize": None,
        "dtype": "float32",
    },
    method="lora",
    adapter={"r": 8},
    parts=[{"part": "adapter", "trained": True, "tensors": 4, "parameters": 12345, "bytes": 49380}],
    settings={"epochs": 2, "monitor": None},
    history=HISTORY,
    best_step=10,
    seconds={"the whole run": 75.25},
    peak_bytes={"memory of the process": 1_234_567_890},
    joules=321.5,
    versions={"torch": "2.13.0"},
    device="a processor",
    command="python recipes/x.py --epochs 2",
)
SMALL = Classification(labels=("ham", "spam"))


def labelled(labels, task=SMALL, name="test.csv"):
    return as_dataset(
        [
            {"text": f"message {n} about {label} and more", task.label: label}
            for n, label in enumerate(labels)
        ],
        name,
    )


def sure_of(label, p=0.9, labels=("ham", "spam")):
    return Answer(
        label=label,
        probabilities={
            name: p if name == label else (1 - p) / (len(labels) - 1) for name in labels
        },
    )


def one_label():
    test = labelled(["ham", "spam"] * 6)
    answers = [
        sure_of(label, 0.6 + 0.03 * n)
        for n, label in enumerate(["ham", "spam"] * 4 + ["spam", "spam", "ham", "ham"])
    ]
    return SMALL, labelled(["ham", "spam"] * 8, name="train.csv"), test, answers


def several_labels():
    task = Classification(label="topics", labels=("a", "b", "c"), multi_label=True)
    rows = [
        {"text": f"text {n} of {' '.join(names)}", "topics": list(names)}
        for n, names in enumerate(["a", "ab", "c", "bc", "", "abc"] * 2)
    ]
    answers = [
        Answer(labels=("a",), probabilities={"a": 0.9, "b": 0.1 + n / 30, "c": 0.2})
        for n in range(12)
    ]
    return task, as_dataset(rows, "train.jsonl"), as_dataset(rows, "test.jsonl"), answers


def numbers():
    rows = as_dataset(
        [{"text": f"a text of size {n}", "score": n / 2} for n in range(12)], "scores.csv"
    )
    return (
        Regression(mean=3.0, deviation=2.0),
        rows,
        rows,
        [Answer(value=n / 2 + (3.0 if n == 7 else 0.1)) for n in range(12)],
    )


def spans():
    context = "The clinic opens at eight. Feet should be checked every day, and shoes once a week."
    rows = as_dataset(
        [
            {
                "question": f"When? {n}",
                "context": context,
                "answers": {"text": ["every day"], "answer_start": [46]},
            }
            for n in range(4)
        ],
        "pages.json",
    )
    found = [
        Answer(
            text=text, start=context.index(text), end=context.index(text) + len(text), probability=p
        )
        for text, p in (("every day", 0.9), ("at eight", 0.8), ("checked every", 0.7))
    ]
    return (
        ExtractiveQA(unanswerable=True),
        rows,
        rows,
        [*found, Answer(text="", probability=0.6, null_probability=0.6)],
    )


def keywords():
    task = Instruction(template="{input}: ", input="text", output="Keywords", separator=";")
    rows = as_dataset(
        [
            {"text": f"the drug helped the patient {n}", "Keywords": "drug; patient; trial"}
            for n in range(6)
        ],
        "papers.csv",
    )
    given = [("Drug", "patient", "trial")] * 3 + [("drug", "bank"), ("bank",), ()]
    return (
        task,
        rows,
        rows,
        [Answer(text="; ".join(names), labels=names, usable=bool(names)) for names in given],
    )


def free_text():
    rows = as_dataset(
        [{"instruction": "Say it.", "input": f"word {n}", "output": f"word {n}"} for n in range(4)],
        "said.jsonl",
    )
    return (
        Instruction(),
        rows,
        rows,
        [
            Answer(text="word 0"),
            Answer(text="word 1"),
            Answer(text="nothing"),
            Answer(text="", usable=False),
        ],
    )


CASES = {
    case.__name__: case for case in (one_label, several_labels, numbers, spans, keywords, free_text)
}


class Page(HTMLParser):
    """What a reader, a browser and a screen reader find in a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.data, self.words, self.stack = [], [], [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "path", "use", "rect"):
            self.stack.append(tag)
        if tag == "data":
            self.data.append([dict(attributes)["value"], ""])

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, text):
        if "style" not in self.stack[-1:]:
            self.words.append(text)
        if "data" in self.stack:
            self.data[-1][1] += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    @functools.cache
    def written(case):
        task, train, test, answers = CASES[case]()
        folder = tmp_path_factory.mktemp(case)
        path = write_report(
            folder,
            task=task,
            train=train,
            valid=test,
            test=test,
            answers=answers,
            systems=baselines(task, train, test),
            run=RUN,
            title=f"A report of {case}",
            resamples=20,
        )
        text = path.read_text(encoding="utf-8")
        return (
            folder,
            text,
            Page(text),
            json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        )

    return written


def flat(value):
    if isinstance(value, dict | list):
        return [x for v in (value.values() if isinstance(value, dict) else value) for x in flat(v)]
    return [value]


# Each task's page


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_number_of_the_page_is_in_metrics_json(case, report):
    _, _, page, found = report(case)
    known = {str(value) for value in flat(found) if isinstance(value, int | float)}
    assert len(page.data) > 20
    writers = [
        functools.partial(wording.write_score, name="f1"),
        functools.partial(wording.write_score, name="loss"),
        functools.partial(wording.write_difference, name="f1"),
        functools.partial(wording.write_difference, name="loss"),
        wording.write_share,
        wording.write_plain,
        wording.write_count,
        wording.write_bytes,
        wording.write_seconds,
    ]
    for value, shown in page.data:
        assert value in known, (value, shown)
        number = float(value) if "." in value or "e" in value else int(value)
        assert shown in {write(number) for write in writers}, (value, shown)


@pytest.mark.parametrize("case", CASES)
def test_the_scores_are_those_of_the_task_and_stand_beside_the_baselines(case, report):
    _, _, page, found = report(case)
    task, train, test, answers = CASES[case]()
    own = found["systems"]["this run"]
    assert {name: value for name, (value, _, _) in own.items()} == pytest.approx(
        task.score(answers, test)
    )
    assert all(low <= value + 1e-9 and value <= high + 1e-9 for value, low, high in own.values())
    assert list(found["systems"]) == ["this run", *baselines(task, train, test)]
    assert all(name in page.text for name in found["systems"])
    assert found["rows"]["test"] == {
        "source": found["rows"]["test"]["source"],
        "rows": len(test),
        "fingerprint": fingerprint_rows(test),
    }
    assert "python recipes/x.py --epochs 2" in page.text
    assert "1 min 15 s" in page.text


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_one_file_without_network_or_script(case, report):
    _, text, page, _ = report(case)
    assert not page.all("script")
    assert not page.all("iframe")
    assert not re.search(r"https?:|//[a-z]|@import|\son[a-z]+=", text)
    assert all("src" not in attributes for _, attributes in page.tags)
    assert all(
        re.match(r"#|data:|figures/[a-z]+\.png$|metrics\.json$", attributes["href"])
        for _, attributes in page.tags
        if "href" in attributes
    )
    assert not re.findall(r"url\((?!#)", text)


@pytest.mark.parametrize("case", CASES)
def test_the_page_has_what_assistive_programs_need(case, report):
    _, _, page, _ = report(case)
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")]
    assert set(targets) <= set(ids)


@pytest.mark.parametrize("case", CASES)
def test_figures_are_in_the_page_and_beside_it_for_light_and_dark(case, report):
    folder, text, page, _ = report(case)
    names = {
        a["href"].removeprefix("figures/") for a in page.all("a") if a["href"].endswith(".png")
    }
    assert names == {path.name for path in (folder / "figures").iterdir()}
    expected = {"systems.png", "lengths.png", "loss.png"} | {
        "one_label": {"reliability.png", "confusion.png", "validation.png"},
        "several_labels": {"reliability.png", "validation.png"},
        "numbers": {"scatter.png", "validation.png"},
        "free_text": set(),
    }.get(case, {"validation.png"})
    assert names == expected
    for path in (folder / "figures").iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == 0, "transparent, so that it stands on any page"
            assert image.width >= 700
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--muted)" in drawn
    assert not re.search(r"(?:fill|stroke|color)\s*:\s*(?:#000000|black|#787d86)", drawn)


# Colours


def test_both_colour_schemes_can_be_read(report):
    css = re.search(r"<style>(.*?)</style>", report("one_label")[1], re.DOTALL)[1]
    assert "color-scheme: light dark" in css
    light, dark = css.split("@media (prefers-color-scheme: dark)")

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for part in (light, dark):
        tones = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", part))
        for ground in ("page", "card", "soft"):
            for ink in ("ink", "muted", "own", "other", "good", "bad", "level"):
                one, two = sorted((luminance(tones[ground]), luminance(tones[ink])))
                assert (two + 0.05) / (one + 0.05) >= 4.5, (ground, ink)


# What the rows say


def test_errors_are_shown_most_confident_first_and_labels_that_two_systems_doubt(report):
    task, _, test, answers = CASES["one_label"]()
    second = [
        sure_of("spam") if n in (8, 3) else sure_of(label)
        for n, label in enumerate(["ham", "spam"] * 6)
    ]
    constant = [sure_of("spam")] * 12
    errors, doubts = choose_examples(
        task, test, {"this run": answers, "second": second, "always": constant}
    )
    assert [(e.row, round(e.number, 2)) for e in errors.examples] == [(12, 0.93), (9, 0.84)]
    assert [(e.row, round(e.number, 2)) for e in doubts.examples] == [(9, 0.16)]
    said = {fact.term: fact.values for fact in doubts.examples[0].facts}
    assert said == {"labelled": ("ham",), "answered": ("spam",), "second": ("spam",)}
    assert "second also contradicts" in doubts.note
    page = report("one_label")[2]
    assert "message 8 about ham and more" in page.text
    assert "row 12" in page.text


def test_a_row_without_an_answer_is_no_confident_error():
    test = labelled(["ham", "spam", "ham"])
    answers = [
        Answer(label=None, probabilities={"ham": 0.45, "spam": 0.55}),
        sure_of("spam"),
        sure_of("spam"),
    ]
    errors, doubts = choose_examples(SMALL, test, {"this run": answers})
    assert [e.row for e in errors.examples] == [3]
    assert [e.row for e in doubts.examples] == [3, 1]


def test_labels_have_their_tables(report):
    _, _, page, found = report("one_label")
    assert found["confusion"] == {
        "right": ["ham", "spam"],
        "given": ["ham", "spam"],
        "rows": [[5, 1], [1, 5]],
    }
    assert [(row["label"], row["rows"], row["training rows"]) for row in found["labels"]] == [
        ("ham", 6, 8),
        ("spam", 6, 8),
    ]
    assert "Commonest confusions" in page.text
    assert "Confusion matrix" in page.text
    _, _, page, found = report("several_labels")
    assert found["confusion"] is None
    assert [row["label"] for row in found["labels"]] == ["a", "b", "c"]
    assert "Confusion matrix" not in page.text


def test_several_labels_are_found_missed_and_invented():
    task, _, test, answers = CASES["several_labels"]()
    errors, doubts = choose_examples(task, test, {"this run": answers})
    first = {fact.term: fact.values for fact in errors.examples[0].facts}
    assert errors.examples[0].row in (3, 4, 5, 9, 10, 11)
    assert first["invented"] == ("a",)
    assert errors.examples[0].number == pytest.approx(0.9)
    assert doubts.examples[0].number == pytest.approx(0.1)
    assert {fact.term for e in doubts.examples for fact in e.facts} <= {"has", "lacks"}


def test_keywords_are_found_missed_and_invented(report):
    groups = report("keywords")[3]["examples"]
    assert groups[0]["found"] == 3
    assert [e["row"] for e in groups[0]["examples"]][:3] == [5, 6, 4]
    assert groups[0]["examples"][2] == {
        "row": 4,
        "number": pytest.approx(0.4),
        "found": ["drug"],
        "missed": ["patient", "trial"],
        "invented": ["bank"],
    }
    assert groups[0]["examples"][3]["missed"] == []


def test_numbers_have_their_scatter_and_their_farthest_rows(report):
    _, _, page, found = report("numbers")
    assert found["points"][7] == [3.5, 6.5]
    assert found["examples"][0]["examples"][0] == {
        "row": 8,
        "number": pytest.approx(3.0),
        "target": ["3.5"],
        "predicted": ["6.5"],
    }
    assert "Predicted against target" in page.text


def test_spans_are_marked_in_their_text(report):
    _, text, page, found = report("spans")
    assert '<mark class="gold">every day</mark>' in text
    assert '<mark class="given">at eight</mark>' in text
    overlap = (
        '<mark class="given">checked </mark><mark class="both">every</mark>'
        '<mark class="gold"> day</mark>'
    )
    assert overlap in text
    assert [e["row"] for e in found["examples"][0]["examples"]] == [2, 4, 3]
    assert "When? 1" in page.text


def test_marked_pieces_are_the_text_and_what_is_far_from_them_is_cut():
    text = "one two three four"
    pieces = mark_spans(text, [(4, 7), (7, 13)], [(8, 18)])
    assert pieces == (("one ", ""), ("two ", "gold"), ("three", "both"), (" four", "given"))
    long = "x" * 500 + "gold" + "y" * 900 + "said" + "z" * 500
    pieces = mark_spans(long, [(500, 504)], [(1404, 1408)])
    assert [mark for _, mark in pieces] == ["", "gold", "", "given", ""]
    assert sum(len(piece) for piece, _ in pieces) < 700
    assert pieces[0][0].startswith("… x")
    assert mark_spans("ab " * 200 + "gold", [(600, 604)], [])[0][0].startswith("… ab ab ")
    assert mark_spans(" " * 900 + "gold", [(900, 904)], [])[1] == ("gold", "gold")
    assert mark_spans("nothing here", [], []) == (("nothing here", ""),)


def answers_with(right):
    """Forty answers, of which the first ones are right."""
    answers = []
    for number, label in enumerate(["ham", "spam"] * 20):
        wrong = "spam" if label == "ham" else "ham"
        answers.append(sure_of(label if number < right else wrong))
    return answers


@pytest.mark.parametrize(
    ("rights", "verdict", "words"),
    [
        ((30, 20), "ahead", "It earns its place"),
        ((20, 20), "level", "Level with a simpler system"),
        ((20, 30), "behind", "Below a simpler system"),
    ],
)
def test_the_verdict_is_the_paired_interval_against_the_best_other(
    rights, verdict, words, tmp_path
):
    test = labelled(["ham", "spam"] * 20)
    own, other = (answers_with(right) for right in rights)
    path = write_report(
        tmp_path,
        task=SMALL,
        train=as_dataset([{"text": "another", "label": "ham"}], "train.csv"),
        test=test,
        answers=own,
        systems={"poor": [sure_of("ham")] * 40, "other": other},
        resamples=60,
    )
    headline = json.loads((tmp_path / "metrics.json").read_text())["headline"]
    assert (headline["verdict"], headline["against"]) == (verdict, "other")
    assert headline["from"] <= headline["difference"] <= headline["to"]
    assert words in Page(path.read_text()).text


@pytest.mark.parametrize(
    ("right", "seen", "crossed", "verdict"),
    [
        (40, 4, False, "ahead"),
        (40, 5, False, "seen"),
        (40, 40, False, "seen"),
        (40, 40, True, "ahead"),
        (20, 0, False, "nothing"),
    ],
)
def test_rows_that_were_trained_on_tell_nothing_and_neither_does_a_run_that_learnt_nothing(
    right, seen, crossed, verdict, tmp_path
):
    test = labelled(["ham", "spam"] * 20)
    trained = [{"text": text.upper(), "label": "ham"} for text in test["text"][:seen]]
    page = write_report(
        tmp_path,
        task=SMALL,
        train=as_dataset([{"text": "another", "label": "spam"}, *trained], "train.csv"),
        test=test,
        answers=answers_with(right),
        systems={"majority": [sure_of("ham")] * 40},
        resamples=60,
        crossed=crossed,
    )
    headline = json.loads((tmp_path / "metrics.json").read_text())["headline"]
    assert headline["verdict"] == verdict
    assert TITLES[verdict] in Page(page.read_text()).text


# Texts and names that need escaping


def test_texts_labels_and_names_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    task = Classification(labels=(evil, "$x_^{", "plain"), label="label")
    test = labelled([evil, "$x_^{", "plain"] * 2, task, name=evil)
    answers = [sure_of(label, labels=task.labels) for label in ["plain", evil, "plain"] * 2]
    path = write_report(
        tmp_path / "out",
        task=task,
        train=test,
        test=test,
        answers=answers,
        title=evil,
        systems={evil + "\a\n": answers[::-1]},
        run=Run(command=evil, history=HISTORY),
        resamples=20,
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert "<script" not in text
    assert evil in page.text
    assert "$x_^{" in page.text


def test_many_labels_have_a_list_of_confusions_instead_of_a_table(tmp_path):
    names = tuple(f"label {n}" for n in range(45))
    task = Classification(labels=names)
    test = labelled(list(names) * 2, task)
    answers = [sure_of(names[(n + (n % 5 == 0)) % 45], labels=names) for n in range(90)]
    page = Page(
        write_report(
            tmp_path, task=task, train=test, test=test, answers=answers, resamples=10
        ).read_text()
    )
    assert "Confusion matrix" not in page.text
    assert "Commonest confusions" in page.text
    assert not (tmp_path / "figures" / "confusion.png").exists()


def test_numbers_that_are_not_finite_and_a_single_row_have_a_report(tmp_path):
    rows = as_dataset([{"text": "a", "score": 1.0}])
    task = Regression(mean=0.0, deviation=1.0)
    write_report(
        tmp_path,
        task=task,
        train=rows,
        test=rows,
        answers=[Answer(value=2.0)],
        run=Run(history=[{"step": 1, "loss": float("nan")}]),
    )
    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert found["run"]["history"] == [{"step": 1, "loss": None}]
    assert found["points"] == [[1.0, 2.0]]


# Files


def test_a_second_report_replaces_all_files_of_the_first(tmp_path):
    for case in ("one_label", "free_text"):
        task, train, test, answers = CASES[case]()
        write_report(tmp_path, task=task, train=train, test=test, answers=answers, resamples=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures",
        "metrics.json",
        "report.html",
    ]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "lengths.png",
        "systems.png",
    ]
    assert json.loads((tmp_path / "metrics.json").read_text())["task"]["name"] == "Instruction"


def test_nothing_is_written_where_answers_do_not_fit(tmp_path):
    task, train, test, answers = CASES["one_label"]()
    with pytest.raises(
        ValueError, match=r"^there are 11 answers and 12 rows, expected one answer a row\.$"
    ):
        write_report(tmp_path / "out", task=task, train=train, test=test, answers=answers[1:])
    with pytest.raises(
        ValueError,
        match="systems has the name 'this run', which is the run's own; give the other system ano",
    ):
        write_report(
            tmp_path / "out",
            task=task,
            train=train,
            test=test,
            answers=answers,
            systems={"this run": answers},
        )
    assert not (tmp_path / "out").exists()


def test_the_same_run_has_the_same_report(report, tmp_path):
    task, train, test, answers = CASES["one_label"]()
    path = write_report(
        tmp_path,
        task=task,
        train=train,
        valid=test,
        test=test,
        answers=answers,
        systems=baselines(task, train, test),
        run=RUN,
        title="A report of one_label",
        resamples=20,
    )
    assert path.read_text(encoding="utf-8") == report("one_label")[1]


def test_an_adapter_folder_holds_its_report_and_loads_as_before(bert, tmp_path, text_rows):
    rows = as_dataset(text_rows, "rows")
    task = Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(bert, task)
    trainer = peftcls.Trainer(
        peftcls.attach_lora(model, task, rank=4),
        task,
        tokenizer,
        peftcls.TrainConfig(tmp_path, epochs=1, batch_size=8, log_every=1),
    )
    trainer.fit(rows, rows)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    meter = Meter()
    answers = trainer.predict(rows)
    write_report(
        tmp_path,
        task=task,
        train=rows,
        valid=rows,
        test=rows,
        answers=answers,
        resamples=20,
        run=describe_run(trainer, meter, seconds={"x": 2.0}),
        count_tokens=lambda text: len(tokenizer(text)["input_ids"]),
    )
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert peftcls.load_predictor(tmp_path).predict(rows) == answers
    found = json.loads((tmp_path / "metrics.json").read_text())
    parts = {part["part"]: part for part in found["run"]["parts"]}
    assert parts["adapter"]["parameters"] == sum(
        p.numel() for n, p in model.named_parameters() if ".lora_" in n
    )
    assert [e["step"] for e in found["run"]["history"]] == [0, 1, 2, 2]
    assert (
        found["run"]["method"],
        found["run"]["adapter"]["r"],
        found["run"]["settings"]["batch_size"],
    ) == ("lora", 4, 8)
    assert found["run"]["peak_bytes"]["memory of the process"] > 1e8
    assert found["lengths"]["unit"] == "tokens"
    assert found["lengths"]["limit"] == 64
    assert (
        "the best step, so the run's scores are slightly optimistic"
        in Page((tmp_path / "report.html").read_text()).text
    )
    trainer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before.keys(), "it told of another adapter"


# The parts


def test_bins_and_their_error_agree():
    confidence = [0.2, 0.55, 0.57, 0.9, 0.95, 1.0]
    is_right = [True, False, True, True, True, False]
    bins = calibration_bins(confidence, is_right)
    assert sum(b["rows"] for b in bins) == 6
    error = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 6
    assert error == pytest.approx(calibration_error(confidence, is_right))
    assert all(b["from"] < b["confidence"] <= b["to"] for b in bins)


def test_a_fingerprint_depends_only_on_the_content(write):
    one = peftcls.read_rows(write("a.csv", "text,label\nx,1\ny,2\n"))
    two = peftcls.read_rows(
        write("b.jsonl", '{"label": "1", "text": "x"}\n{"label": "2", "text": "y"}\n')
    )
    assert fingerprint_rows(one) == fingerprint_rows(two)
    assert fingerprint_rows(one) != fingerprint_rows(one.select([1, 0]))


def test_energy_is_measured_where_the_counters_can_be_read(tmp_path):
    def counters(value, span):
        zone = tmp_path / "intel-rapl:0"
        zone.mkdir(exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text(f"{span}\n")

    assert Meter(tmp_path).joules() is None
    counters(9_000_000_000_000, 10_000_000_000_000)
    meter = Meter(tmp_path)
    counters(9_000_002_500_000, 10_000_000_000_000)
    assert meter.joules() == 2.5
    counters(500_000, 10_000_000_000_000)  # it has wrapped around
    assert meter.joules() == pytest.approx(1_000_000.5)
    counters(0, 1)
    meter = Meter(tmp_path)
    assert meter.joules() is None, (
        "a counter of one microjoule may have wrapped around any number of times"
    )


@pytest.mark.parametrize(
    ("processes", "precision", "device", "command"),
    [
        (1, "no", "cpu", "python"),
        (2, "no", "cpu", "torchrun --nproc-per-node 2"),
        (1, "no", "cuda", "python"),
        (1, "bf16", "cpu", "ACCELERATE_MIXED_PRECISION=bf16 python"),
        (4, "bf16", "cuda", "accelerate launch --num_processes 4 --mixed_precision bf16"),
    ],
)
def test_the_command_starts_the_program_again(processes, precision, device, command, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gone/x.py", "--train", "a b.csv"])
    assert command_line(processes, precision, device) == f"{command} gone/x.py --train 'a b.csv'"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.write_share(0.99996), ">99.9"),
        (wording.write_share(0.0001), "<0.1"),
        (wording.write_share(1.0), "100.0"),
        (wording.write_difference(-0.0512, "f1"), "−5.1"),
        (wording.write_difference(0.05, "pearson"), "+0.050"),
        (wording.write_count(1234567), "1\u202f234\u202f567"),
        (wording.write_bytes(999), "999 B"),
        (wording.write_bytes(2_500_000), "2.5 MB"),
        (wording.write_seconds(59.94), "59.9 s"),
        (wording.write_seconds(3725), "1 h 02 min"),
        (wording.write_list("abc"), "a, b and c"),
        (wording.score_title("f1_at_5"), "F1 at 5"),
        (wording.score_title("odd_score"), "odd score"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written == expected


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_needs_no_sideways_scrolling(width, report, tmp_path):
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(report(case)[1])}"></iframe>'
        for case in CASES
    )
    measure = (
        "onload = () => document.title = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.documentElement.scrollWidth).join(' ')"
    )
    (tmp_path / "frames.html").write_text(
        f"<title></title>{frames}<script>{measure}</script>", encoding="utf-8"
    )
    ended = shown_page((tmp_path / "frames.html").as_uri(), tmp_path / "profile")
    widths = [int(w) for w in re.search(r"<title>([\d ]+)</title>", ended.stdout)[1].split()]
    assert len(widths) == len(CASES)
    assert max(widths) <= width
