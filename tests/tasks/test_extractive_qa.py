"""Extractive question answering: spans in the user's own text, windows, no answer, wrong tables."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_checks import check_task

import peftcls
from peftcls import (
    Answer,
    ExtractiveQA,
    RowError,
    TrainConfig,
    Trainer,
    attach_lora,
    check_rows,
    load_base,
    load_predictor,
    read_rows,
)
from peftcls.data.reading import as_dataset
from peftcls.engine.head_logits import end_logits
from peftcls.engine.model_state import base_facts
from peftcls.inference.predictor import Predictor
from peftcls.metrics import span_f1, span_scores
from peftcls.quality.examine import examine_rows
from peftcls.tasks.span_search import best_spans
from peftcls.tasks.spans import find_answers, gold_answers, occurrences

CONTEXT = (
    "the patient was given a new drug and recovered. "
    "a galaxy far away emits radio waves. stock prices fell."
)


def row(
    question: str, answer: str | None, context: str = CONTEXT, start: int | None = None, **more: Any
) -> dict[str, Any]:
    found = [] if answer is None else [answer]
    return {
        "question": question,
        "context": context,
        **more,
        "answers": {
            "text": found,
            "answer_start": [context.index(a) if start is None else start for a in found],
        },
    }


ROWS = [
    row("who was given a drug?", "the patient"),
    row("what was given?", "a new drug"),
    row("what emits waves?", "a galaxy far away"),
    row("what fell?", "stock prices"),
    row("what was emitted?", "radio waves"),
    row("what of the patient?", "recovered"),
]


@pytest.fixture(scope="module", params=["bert", "llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("unanswerable", [False, True])
def test_it_keeps_the_contract_of_tasks(base, unanswerable):
    longer = [
        row("what fell after it?", "stock prices", CONTEXT * 2, start=CONTEXT.index("stock")),
        row("who?", "the patient"),
    ]
    rows = [
        *ROWS,
        *longer,
        *([row("who sang?", None), row("why did it fall?", None)] if unanswerable else []),
    ]
    check_task(
        ExtractiveQA(max_length=48, stride=12),
        base,
        rows,
        right=lambda r: Answer(text="".join(r["answers"]["text"][:1])),
    )


# Training


@pytest.mark.slow
def test_it_learns_where_the_answers_are_and_another_program_finds_the_same(base, tmp_path):
    task = ExtractiveQA(max_length=64, stride=16).learn(ROWS)
    assert task.unanswerable is False
    model, tokenizer = load_base(base, task)
    model = attach_lora(model, task, rank=8, targets="all-linear")
    trainer = Trainer(
        model,
        task,
        tokenizer,
        TrainConfig(tmp_path, epochs=80, batch_size=6, learning_rate=1e-2, weight_decay=0.0),
    )
    trainer.fit(ROWS)
    assert trainer.evaluate(ROWS)["exact_match"] >= 5 / 6
    answers = load_predictor(tmp_path).predict(ROWS)
    for ours, theirs, question in zip(trainer.predict(ROWS), answers, ROWS, strict=True):
        assert (ours.text, ours.start, ours.end) == (theirs.text, theirs.start, theirs.end)
        assert theirs.probability == pytest.approx(ours.probability, abs=1e-5)
        assert theirs.text == question["context"][theirs.start : theirs.end]
    assert (
        load_predictor(tmp_path).predict([(ROWS[3]["question"], CONTEXT)])[0].text
        == answers[3].text
    )


def test_both_ends_are_trained(bert):
    task = ExtractiveQA(max_length=64)
    model, tokenizer = load_base(bert, task)
    model = attach_lora(model, task)
    features = [task.encode(r, tokenizer, with_target=True) for r in ROWS[:2]]
    task.loss_sum(model, task.collate(features, tokenizer)).backward()
    (head,) = (
        p
        for name, p in model.named_parameters()
        if name.endswith("qa_outputs.modules_to_save.default.weight")
    )
    assert (head.grad.abs().sum(1) > 0).all()


def test_the_backbone_of_a_decoder_is_the_pretrained_one(llama):
    """Its question answering class wants the backbone under a name no causal model's file has."""
    model, _ = load_base(llama, ExtractiveQA())
    plain, _ = load_base(llama, peftcls.Instruction())
    assert base_facts(model).heads == ("qa_outputs",)
    for (name, one), (other, two) in zip(
        model.base_model.state_dict().items(), plain.base_model.state_dict().items(), strict=True
    ):
        assert (name, one.tolist()) == (other, two.tolist())


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantized_base_answers_the_same_when_loaded_again(quantize, llama, tmp_path):
    task = ExtractiveQA(max_length=64)
    model, tokenizer = load_base(llama, task, quantize=quantize)
    trainer = Trainer(attach_lora(model, task), task, tokenizer, TrainConfig(tmp_path, epochs=1))
    trainer.fit(ROWS)
    assert [a.text for a in load_predictor(tmp_path).predict(ROWS)] == [
        a.text for a in trainer.predict(ROWS)
    ]


# The loss


def loss(
    task: ExtractiveQA, model: torch.nn.Module, tokenizer: Any, rows: list[dict[str, Any]]
) -> float:
    batch = task.collate([task.encode(r, tokenizer, with_target=True) for r in rows], tokenizer)
    return float(task.loss_sum(model, batch))


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_loss_does_not_depend_on_padding_batch_mates_or_order(base, unanswerable):
    task = ExtractiveQA(max_length=48, stride=12, unanswerable=unanswerable)
    model, tokenizer = load_base(base, task)
    model = model.double()
    long = row("who?", "stock prices", CONTEXT * 3, start=CONTEXT.index("stock"))
    rows = [*ROWS, long, *([row("who sang?", None)] if unanswerable else [])]
    alone = sum(loss(task, model, tokenizer, [r]) for r in rows)
    assert loss(task, model, tokenizer, rows) == pytest.approx(alone, rel=1e-9)
    assert loss(task, model, tokenizer, rows[::-1]) == pytest.approx(alone, rel=1e-9)
    tokenizer.padding_side = "left" if tokenizer.padding_side == "right" else "right"
    assert loss(task, model, tokenizer, rows) == pytest.approx(alone, rel=1e-9)


def test_the_loss_is_that_of_the_formula_over_all_windows(bert):
    task = ExtractiveQA(max_length=32, stride=8)
    model, tokenizer = load_base(bert, task)
    model = model.double()
    long = row(
        "who?", "stock prices", CONTEXT + " " + CONTEXT.replace("stock prices", "oil prices")
    )
    feature = task.encode(long, tokenizer, with_target=True)
    assert len(feature["windows"]) > 2
    total, start = 0.0, 0
    logits: dict[str, list[float]] = {"start": [], "end": []}
    for tokens in feature[
        "windows"
    ]:  # each window through the plain transformers model, without padding
        ids = torch.tensor([feature["input_ids"][start : start + tokens]])
        types = torch.tensor([feature["token_type_ids"][start : start + tokens]])
        found = model(input_ids=ids, token_type_ids=types)
        logits["start"] += found.start_logits[0].tolist()
        logits["end"] += found.end_logits[0].tolist()
        start += tokens
    allowed = torch.tensor(feature["allowed"]).bool()
    for end, gold in (("start", feature["starts"]), ("end", feature["ends"])):
        values = torch.tensor(logits[end])
        total += (
            float(values[allowed].logsumexp(0) - values[torch.tensor(gold).bool()].logsumexp(0)) / 2
        )
    assert loss(task, model, tokenizer, [long]) == pytest.approx(total, rel=1e-6)


# Prediction


LETTERS = "ab cd. éé́ 東京の👩‍🔬🎉❤️👍🏽🇩🇪\r\n\t½ßİ—“”x1 2"
TEXTS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=120).filter(str.strip)
QUESTIONS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=30).filter(str.strip)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(context=TEXTS, question=QUESTIONS)
def test_every_answer_is_the_slice_of_the_context_that_it_names(base, context, question):
    task = ExtractiveQA(max_length=250, stride=32, unanswerable=True, null_threshold=0.999999)
    if base not in PREDICTORS:
        model, tokenizer = load_base(base, task)
        PREDICTORS[base] = Predictor(model, task, tokenizer)
    (answer,) = PREDICTORS[base].predict([(question, context)])
    for found in (answer, *answer.n_best):
        if found.start is not None:
            assert found.text == context[found.start : found.end]
            assert found.text
            assert found.text == found.text.strip()
            assert {found.start, found.end} <= {
                0,
                *(whole.end() for whole in regex.finditer(r"\X", context)),
            } | {space.end() for space in re.finditer(r"\s", context)}
    assert sum(a.probability for a in answer.n_best) + answer.null_probability <= 1 + 1e-9
    assert [a.probability for a in answer.n_best] == sorted(
        (a.probability for a in answer.n_best), reverse=True
    )


PREDICTORS: dict[str, Predictor] = {}


def test_answers_do_not_depend_on_the_batch(base):
    task = ExtractiveQA(max_length=40, stride=8)
    model, tokenizer = load_base(base, task)
    predictor = Predictor(model, task, tokenizer)
    rows = [
        {"question": r["question"], "context": r["context"] * (1 + n % 3)}
        for n, r in enumerate(ROWS)
    ]
    together, alone = predictor.predict(rows), [predictor.predict([r])[0] for r in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_span_probabilities_are_those_of_all_legal_spans():
    start, end = (
        torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[3.0, 0.0, 1.0]], dtype=torch.float64),
    )
    allowed = torch.tensor([[False, True, True]])
    spans, null = best_spans(
        start, end, allowed, [[(0, 0), (0, 2), (3, 5)]], "ab cd", 1.5, longest=5, count=9
    )
    weights = {
        (0, 2): 1.0,
        (3, 5): 3.0,
        (0, 5): 2.0,
    }  # first logit and last logit, of spans in order
    total = sum(torch.tensor(w).exp() for w in weights.values()) + torch.tensor(1.5).exp()
    assert {(s.start, s.end): pytest.approx(s.probability) for s in spans} == {
        place: float(torch.tensor(w).exp() / total) for place, w in weights.items()
    }
    assert null == pytest.approx(float(torch.tensor(1.5).exp() / total))
    short, _ = best_spans(
        start, end, allowed, [[(0, 0), (0, 2), (3, 5)]], "ab cd", None, longest=1, count=9
    )
    assert {(s.start, s.end) for s in short} == {(0, 2), (3, 5)}


def test_the_threshold_for_no_answer_is_fitted_on_validation_rows_and_kept_in_the_folder(
    bert, tmp_path
):
    rows = [*ROWS, *(row(f"who sang song {n}?", None) for n in range(6))]
    task = ExtractiveQA(max_length=64).learn(rows)
    assert task.unanswerable is True
    model, tokenizer = load_base(bert, task)
    trainer = Trainer(
        attach_lora(model, task, targets="all-linear"),
        task,
        tokenizer,
        TrainConfig(tmp_path, epochs=6, batch_size=12, learning_rate=5e-3),
    )
    trainer.fit(rows)
    before, after = trainer.calibrate(rows)
    assert after["f1"] >= before["f1"]
    loaded = load_predictor(tmp_path)
    assert isinstance(loaded.task, ExtractiveQA)
    assert loaded.task.null_threshold == trainer.task.null_threshold
    answers = loaded.predict(rows)
    assert [a.text for a in answers] == [a.text for a in trainer.predict(rows)]
    assert all((a.text == "") == (a.null_probability > loaded.task.null_threshold) for a in answers)


# Scores


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1, 1.0),  # case, article and full stop do not count
        ("a  cat's   tail", ["cats tail"], 1, 1.0),
        ("the", [""], 1, 1.0),  # an article alone is nothing
        ("", [""], 1, 1.0),
        ("", ["word"], 0, 0.0),
        ("word", [""], 0, 0.0),
        (
            "in the year 1999",
            ["1999", "the year 2000"],
            0,
            0.5,
        ),  # year, 1999 and in against 1999: 2 x 1 / (3 + 1)
        ("1999 1999", ["1999"], 0, 2 / 3),
        ("U.S.A.", ["usa"], 1, 1.0),
        ("another one", ["other one"], 0, 0.5),
        ("$12", ["12"], 1, 1.0),
        ("–", ["-"], 0, 0.0),
        ("東京", ["東京"], 1, 1.0),
        ("München", ["munchen"], 0, 0.0),
    ],
)
def test_scores_are_those_of_the_official_script(predicted, gold, exact, f1):
    assert span_scores([gold], [predicted]) == pytest.approx({"exact_match": exact, "f1": f1})
    assert span_f1(predicted, gold) == pytest.approx(f1)


def test_scores_are_means_over_rows():
    assert span_scores([["a cat"], ["dog"]], ["cat", "cat"]) == {"f1": 0.5, "exact_match": 0.5}


# Tables


def test_a_start_that_is_wrong_is_put_right_where_the_answer_occurs_once():
    assert find_answers("one two three", gold_answers({"text": ["two"], "answer_start": [0]})) == [
        (4, 7)
    ]
    assert find_answers("one two three", gold_answers([{"text": " two ", "answer_start": 99}])) == [
        (4, 7)
    ]
    assert find_answers("one two three", gold_answers("three")) == [(8, 13)]
    assert occurrences("aaa", "aa") == [0, 1]


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            {"text": ["four"], "answer_start": [0]},
            "row 1 of rows has the answer 'four' at character 0, where 'one two one' stands; "
            "it occurs nowhere in the context; correct its answer_start (column 'answers').",
        ),
        (
            {"text": ["one"], "answer_start": [3]},
            "row 1 of rows has the answer 'one' at character 3, where ' two one' stands; "
            "it occurs 2 times in the context; correct its answer_start (column 'answers').",
        ),
        (
            "one",
            "row 1 of rows has the answer 'one'; it occurs 2 times in the context; "
            'say where: {"text": [...], "answer_start": [0]} '
            "(column 'answers').",
        ),
        (
            "four",
            "row 1 of rows has the answer 'four'; it occurs nowhere in the context; "
            "correct it (column 'answers').",
        ),
        (
            {"text": [], "answer_start": []},
            "row 1 of rows has no answer in column 'answers', while all training rows have one; "
            "add some without one to them (in Python, task.learn(rows) or unanswerable=True), "
            "or leave the row out.",
        ),
        (
            None,
            "row 1 of rows has nothing in column 'answers'; give the answer, "
            "or an empty list (in a SQuAD file is_impossible) where the context has none, "
            "or leave the row out.",
        ),
        (
            {"text": ["one", "two"], "answer_start": [0]},
            "row 1 of rows has 2 answer texts and 1 answer_start values, expected as many "
            "(column 'answers').",
        ),
        (
            [{"answer": "one"}],
            "row 1 of rows has the answers \"[{'answer': 'one'}]\", "
            "expected a text or objects with text and answer_start (column 'answers').",
        ),
    ],
)
def test_what_is_wrong_with_an_answer_is_one_sentence(answers, sentence):
    with pytest.raises(RowError) as raised:
        check_rows(
            ExtractiveQA(),
            as_dataset([{"question": "q", "context": "one two one", "answers": answers}], "rows"),
        )
    assert str(raised.value) == sentence


def test_a_message_about_a_squad_file_names_article_paragraph_and_question(write):
    content = {
        "data": [
            {
                "title": "Feet",
                "paragraphs": [
                    {"context": "x", "qas": []},
                    {
                        "context": "dry dry",
                        "qas": [
                            {
                                "id": "f-1",
                                "question": "how?",
                                "answers": [{"text": "dry", "answer_start": 1}],
                            }
                        ],
                    },
                ],
            }
        ]
    }
    rows = peftcls.read_rows(write("feet.json", json.dumps(content)))
    with pytest.raises(
        RowError,
        match=r"^row 1 of feet.json \(title 'Feet', paragraph 2, id 'f-1'\) "
        r"has the answer 'dry' at character 1",
    ):
        check_rows(ExtractiveQA(), rows)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"context": " "}, "has no text in column 'context'"),
        ({"question": ""}, "has no text in column 'question'"),
    ],
)
def test_an_empty_question_or_context_is_refused(changed, sentence):
    with pytest.raises(RowError, match=sentence):
        check_rows(ExtractiveQA(), as_dataset([{**ROWS[0], **changed}]))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_an_empty_cell_is_no_answer_that_there_is_none(kind, write):
    asked = [
        {"id": "1", "question": "q?", "answers": [{"text": "one", "answer_start": 0}]},
        {"id": "2", "question": "q?"},
    ]
    if kind == "json":
        content = json.dumps(
            {"data": [{"title": "t", "paragraphs": [{"context": "one two", "qas": asked}]}]}
        )
    elif kind == "csv":
        content = "id,question,context,answers\n1,q?,one two,one\n2,q?,one two,\n"
    else:
        content = "\n".join(json.dumps({**question, "context": "one two"}) for question in asked)
    rows = read_rows(write(f"asked.{kind}", content))
    task = ExtractiveQA().learn(rows)
    assert not task.unanswerable
    for told in (task, ExtractiveQA(unanswerable=True)):
        with pytest.raises(RowError, match=r"^row 2 of asked.* has nothing in column 'answers'"):
            check_rows(told, rows, training=True)
    check_rows(task, rows, with_target=False)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_empty_list_in_a_table_is_that_there_is_no_answer(kind, write):
    content = {
        "csv": "question,context,answers\nq?,one two,one\nq?,one two,[]\n",
        "jsonl": '{"question": "q?", "context": "one two", '
        '"answers": [{"text": "one", "answer_start": 0}]}\n'
        '{"question": "q?", "context": "one two", "answers": []}\n',
    }[kind]
    rows = read_rows(write(f"asked.{kind}", content))
    task = ExtractiveQA().learn(rows)
    assert task.unanswerable
    check_rows(task, rows, training=True)


def test_rows_of_which_none_has_an_answer_are_nothing_to_learn_from():
    with pytest.raises(
        RowError,
        match="no row of asked has an answer in column 'answers'; expected rows to learn from",
    ):
        ExtractiveQA().learn(
            as_dataset([{**ROWS[0], "answers": {"text": [], "answer_start": []}}], "asked")
        )


def test_an_id_that_comes_twice_is_refused():
    with pytest.raises(RowError, match="has the id 'a' twice; give each question its own"):
        check_rows(
            ExtractiveQA(),
            as_dataset([{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "a"}]),
            training=True,
        )


def test_answers_and_questions_that_fit_no_window_are_refused(bert):
    task = ExtractiveQA(max_length=32, stride=0)
    _, tokenizer = load_base(bert, task)
    long = row("who?", CONTEXT * 2, CONTEXT * 3, start=0)
    with pytest.raises(
        RowError, match="whole in no window of 32 tokens; raise max_length, or stride"
    ):
        task.encode(long, tokenizer, with_target=True)
    with pytest.raises(
        RowError,
        match="has a question that leaves 0 of 32 tokens for the context in column 'context'",
    ):
        task.encode(row("who " * 40, "stock prices"), tokenizer, with_target=True)


def test_doubtful_places_are_counted():
    context = (
        "In 1911 a clinic opened. "
        "The hospital in Lindau closed in 1911 after the flood destroyed it."
    )
    rows = as_dataset(
        [
            row("When did the flood destroyed hospital in Lindau close?", "1911", context, start=3),
            row("What opened?", "clin", context),
            row("What closed?", "hospital", context, start=0),
        ]
    )
    found = {finding.what: finding.rows for finding in examine_rows(ExtractiveQA(), rows).findings}
    assert {name: found[name] for name in ("moved-answer", "cut-word", "doubtful-answer")} == {
        "moved-answer": (3,),
        "cut-word": (2,),
        "doubtful-answer": (1,),
    }


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError,
        match="max_length=8: expected at least 32 tokens; stride=-1: expected at least 0",
    ):
        ExtractiveQA(max_length=8, stride=-1)
    with pytest.raises(
        ValueError, match="null_threshold=1: expected a probability between 0 and 1"
    ):
        ExtractiveQA(null_threshold=1)


def test_a_table_with_one_answer_as_text_is_enough(bert, tmp_path: Path, write):
    table = (
        f"question,context,answers\nwhat fell?,{CONTEXT},stock prices\nwho?,{CONTEXT},the patient\n"
    )
    rows = peftcls.read_rows(write("faq.csv", table))
    task = ExtractiveQA(max_length=64).learn(rows)
    model, tokenizer = load_base(bert, task)
    Trainer(attach_lora(model, task), task, tokenizer, TrainConfig(tmp_path / "out", epochs=1)).fit(
        rows
    )
    assert load_predictor(tmp_path / "out").predict(rows)[0].text


# What an attacker found


def test_a_decoder_tells_no_answer_from_an_answer_that_ends_the_context(gpt2, tmp_path):
    context = "the bank raised rates"
    rows = [
        row(f"{'what' if n % 2 else 'who'} {n}?", "rates" if n % 2 else None, context)
        for n in range(8)
    ]
    task = ExtractiveQA(max_length=64).learn(rows)
    model, tokenizer = load_base(gpt2, task)
    for feature in (task.encode(r, tokenizer, with_target=True) for r in rows):
        assert not any(a and n for a, n in zip(feature["allowed"], feature["null"], strict=True))
        assert sum(feature["null"]) == len(feature["windows"])
    config = TrainConfig(tmp_path, epochs=60, batch_size=8, learning_rate=5e-3)
    trainer = Trainer(attach_lora(model, task, targets="all-linear"), task, tokenizer, config)
    trainer.fit(rows)
    assert trainer.evaluate(rows)["exact_match"] > 0.8


def test_the_answer_does_not_depend_on_how_many_are_asked_for(base):
    task = ExtractiveQA(max_length=40, stride=16)
    model, tokenizer = load_base(base, task)
    for rows in ([("what?", "😀😃😄 患者康复 ok")], [("who?", CONTEXT * 2)]):
        few, many = (
            Predictor(model, ExtractiveQA(max_length=40, stride=16, n_best=n), tokenizer).predict(
                rows
            )[0]
            for n in (1, 10**6)
        )
        assert (few.text, few.start) == (many.text, many.start)
        assert few.probability == pytest.approx(many.probability)
        assert sum(a.probability for a in many.n_best) == pytest.approx(
            1, abs=0.02
        )  # spans of white space alone are left out


def test_spaces_around_an_answer_are_not_part_of_it(bert):
    assert find_answers(
        CONTEXT,
        gold_answers({"text": [" new drug "], "answer_start": [CONTEXT.index(" new drug ")]}),
    ) == [(CONTEXT.index("new"), CONTEXT.index("new") + 8)]
    task = ExtractiveQA(max_length=64)
    _, tokenizer = load_base(bert, task)
    hidden = "he said \u200bstock prices fell."  # a character that the tokenizer drops
    feature = task.encode(row("what?", "\u200bstock prices", hidden), tokenizer, with_target=True)
    assert sum(feature["starts"]) == sum(feature["ends"]) == 1


def test_a_cell_of_a_csv_file_may_hold_the_answers_as_json():
    assert find_answers("one two one", gold_answers('{"text": ["one"], "answer_start": [8]}')) == [
        (8, 11)
    ]


@pytest.mark.parametrize("start", ["x", 26.7, True, float("inf")])
def test_a_start_that_is_no_place_is_refused_with_its_row(start):
    rows = [
        {"question": "q", "context": "one", "answers": [{"text": "one", "answer_start": start}]}
    ]
    with pytest.raises(
        RowError,
        match=r"^row 1 of .* has the answer_start .*, "
        r"expected a whole number of characters \(column 'answers'\)",
    ):
        ExtractiveQA().learn(rows)


def test_wrong_answers_alone_do_not_silence_a_model():
    task = ExtractiveQA(unanswerable=True)
    wrong = Answer(text="x", null_probability=0.2, n_best=(Answer(text="x"),))
    assert task.calibrated([wrong] * 3, [row("q", "one", "one")] * 3).null_threshold > 0.2
    with pytest.raises(ValueError, match="it needs unanswerable=True"):
        ExtractiveQA().calibrated([wrong], [row("q", "one", "one")])


@pytest.mark.parametrize("rows", [0, 3])
def test_questions_without_an_answer_alone_silence_no_model(rows):
    sure = Answer(text="x", null_probability=0.2, n_best=(Answer(text="x"),))
    with pytest.raises(
        ValueError,
        match=r"^Cannot calibrate: no row has an answer\. Use rows of which some have an answer",
    ):
        ExtractiveQA(unanswerable=True).calibrated([sure] * rows, [row("q", None)] * rows)


def test_an_adapter_does_not_take_the_token_types_from_a_reader(bert):
    task = ExtractiveQA(max_length=64, unanswerable=False)
    model, tokenizer = peftcls.load_base(bert, task)
    feature = task.encode(
        {"question": "who recovered?", "context": "the patient was given a new drug and recovered"},
        tokenizer,
        with_target=False,
    )
    batch = task.collate([feature], tokenizer)
    assert batch["token_type_ids"].any()
    with torch.no_grad():
        expected = end_logits(model, batch)
        flat = end_logits(
            model, {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
        )
        found = end_logits(peftcls.attach_lora(model, task), batch)  # a new adapter changes nothing
    assert not torch.allclose(expected[0], flat[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("context", "start"),
    [
        ("one\ntwo\none", 10),  # line ends of two characters
        ("\N{FACE WITH TEARS OF JOY} one, one", 8),  # the units of UTF-16
        ("déjà vu one, one", 15),  # bytes
    ],
)
def test_a_start_that_was_counted_otherwise_is_put_right(context, start):
    (found,) = find_answers(context, gold_answers({"text": ["one"], "answer_start": [start]}))
    assert found == (context.rindex("one"), context.rindex("one") + 3)
