"""Prompts, the place of the answer, and the probabilities of a closed set of answers."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import peftcls
from peftcls import Instruction, Predictor, RowError
from peftcls.data.reading import as_dataset
from peftcls.tasks.encoding import encode_rows, encode_table
from peftcls.tasks.label_trie import LabelTrie
from peftcls.tasks.prompts import placeholders, render, split_cue, tokenize_with_answers

CLASSES = "Text: {input}\nAnswer: "
NESTED = ("yes", "yes please", "no")  # one is the beginning of another
SHARED = ("label one", "label two", "label three", "maybe", "maybe not")
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)
words = st.lists(
    st.sampled_from(
        [
            "the",
            "patient",
            "was",
            "given",
            "a",
            "new",
            "drug",
            "{input}",
            "{title}",
            "café",
            "日本",
            "🙂",
            ",",
            ".",
            "yes",
            "12",
        ]
    ),
    min_size=1,
    max_size=60,
).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer(gpt2):
    return peftcls.load_base(gpt2, Instruction())[1]


@pytest.fixture(scope="module")
def llama_parts(llama):
    """A task's model is the same for every Instruction: it has no head."""
    return peftcls.load_base(llama, Instruction())


def closed(labels, **settings) -> Instruction:
    return Instruction(
        **{
            "template": CLASSES,
            "input": "text",
            "output": "label",
            "labels": labels,
            "max_length": 128,
            "max_new_tokens": 16,
            **settings,
        }
    )


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# Rendering


@pytest.mark.parametrize(
    "value",
    [
        "{title}",
        "{input}",
        "{0.__class__}",
        "{title.__class__.__mro__}",
        "{}",
        "{{",
        "}}",
        "{title!r:>99}",
        "%s",
        "$title",
        r"\1",
        r"\g<0>",
        "{",
        "\\",
    ],
)
def test_nothing_inside_a_value_is_a_placeholder(value):
    template = "{title}: {input} | {title}"
    assert render(template, {"title": value, "input": value}) == f"{value}: {value} | {value}"


@given(texts, texts)
@settings(max_examples=100, deadline=None)
def test_the_prompt_is_the_template_with_the_values_put_in(title, abstract):
    assert (
        render("a {title} b {input} c {title}", {"title": title, "input": abstract})
        == f"a {title} b {abstract} c {title}"
    )


def test_braces_without_a_name_stay_in_the_template():
    assert render('{"a": {input}} {} {0.x} {a b}', {"input": "x"}) == '{"a": x} {} {0.x} {a b}'


def test_a_column_without_a_value_leaves_nothing():
    assert render("a{title}b", {"title": None}) == render("a{title}b", {}) == "ab"


def test_numbers_are_written_as_they_are():
    assert render("{n} {m}", {"n": 0, "m": False}) == "0 False"


def test_the_columns_of_a_template_come_in_order_and_once():
    assert placeholders("{b} {a} {b} {c.d} {}") == ["b", "a"]
    task = Instruction(
        template="{title} {input} {instruction} {title}",
        input="abstract",
        instruction="task",
        output="answer",
    )
    assert task.columns(with_target=False) == ["title", "abstract", "task"]
    assert task.columns(with_target=True) == ["title", "abstract", "task", "answer"]


@pytest.mark.parametrize(
    ("template", "cue", "space"),
    [("A: ", "A:", " "), ("A:\n", "A:", "\n"), ("A:", "A:", " "), ("A:\n\n ", "A:", "\n\n ")],
)
def test_the_white_space_at_the_end_of_a_template_begins_the_answer(template, cue, space):
    assert split_cue(template) == (cue, space)


def test_braces_in_a_row_reach_the_model_as_they_are(tokenizer):
    task = Instruction(
        template="{title}\n{input}\nAnswer: ",
        input="abstract",
        output="answer",
        max_length=200,
        max_new_tokens=10,
    )
    row = {
        "title": "{abstract} {0.__class__}",
        "abstract": "on {title} and {answer}",
        "answer": "{title}",
    }
    feature = task.encode(row, tokenizer, with_target=True)
    assert (
        decoded(tokenizer, feature["input_ids"][:-1])
        == f"{row['title']}\n{row['abstract']}\nAnswer: {{title}}"
    )


# Shortening


@given(st.integers(24, 130), words, st.booleans())
@example(40, "the patient " * 40, True)
@example(41, "🙂" * 60, True)
@example(41, "日本" * 60, False)
@example(60, " " * 200 + "x", False)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_the_document_is_ever_shortened(tokenizer, max_length, document, with_target):
    task = Instruction(
        template="Do: {instruction} <<{input}>> ({title}) Answer: ",
        output="answer",
        max_length=max_length,
        max_new_tokens=6,
    )
    row = {"instruction": "{title}?", "input": document, "title": "{input}", "answer": "yes no"}
    try:
        feature = task.encode(row, tokenizer, with_target=with_target)
    except RowError as error:
        assert "tokens without 'input', expected fewer than" in str(error)
        return
    ids = feature["input_ids"]
    assert len(ids) <= (max_length if with_target else max_length - task.max_new_tokens)
    text = decoded(tokenizer, ids)
    head, tail = (
        "Do: {title}? <<",
        ">> ({input}) Answer:" + (" yes no<|endoftext|>" if with_target else ""),
    )
    assert text.startswith(head)
    assert text.endswith(tail)
    kept = text[len(head) : len(text) - len(tail)]
    assert document.startswith(kept)
    assert feature["shortened"] == (kept != document)
    if feature["shortened"]:
        assert len(
            tokenizer(text[: len(text) - len(tail)] + document[len(kept) :] + tail)["input_ids"]
        ) > len(ids)


@pytest.mark.parametrize(
    "template", ["{input} Answer: ", "Answer: {input}", "{input}", "{input}\n"]
)
def test_the_document_is_shortened_wherever_it_stands(tokenizer, template):
    task = Instruction(template=template, output="answer", max_length=60, max_new_tokens=6)
    document = "the patient was given a new drug and " * 30
    feature = task.encode({"input": document, "answer": "yes"}, tokenizer, with_target=True)
    prompt = decoded(tokenizer, feature["input_ids"][: feature["prompt_tokens"]])
    cue = template.rstrip()
    assert feature["shortened"]
    assert prompt in {
        cue.replace("{input}", document[:n].rstrip()) for n in range(1, len(document))
    }
    assert 30 < len(feature["input_ids"]) <= 60


def test_a_document_that_just_fits_is_left_whole(tokenizer):
    row = {"text": "the patient was given a new drug", "label": "no"}
    whole = len(tokenizer(CLASSES.rstrip().replace("{input}", row["text"]))["input_ids"])
    room = max(len(tokenizer(" " + label)["input_ids"]) for label in NESTED) + 1
    for max_length, shortened in ((whole + room, False), (whole + room - 1, True)):
        assert (
            closed(NESTED, max_length=max_length).encode(row, tokenizer, with_target=True)[
                "shortened"
            ]
            == shortened
        )


def test_the_table_counts_its_shortened_rows(tokenizer):
    rows = as_dataset(
        [
            {"text": text, "label": "no"}
            for text in ("a drug", "a drug " * 200, "the bank", "the bank " * 200)
        ]
    )
    assert encode_table(closed(NESTED), rows, tokenizer, "base").shortened_rows == 2


# The answer


@pytest.mark.parametrize(
    "template", ["Answer: ", "Answer:", "Answer:\n", "### Response:\n\n", "{input} = "]
)
@given(answer=st.one_of(texts, words), document=st.one_of(texts, words))
@example(answer="!", document="x ").via("white space before the border")
@example(answer="'s", document="it\n")
@example(answer="<b>", document="é")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_supervised_is_the_answer_and_the_end_mark_and_no_more(
    tokenizer, template, answer, document
):
    tokenizer.model_max_length = 1000  # no model computes anything here
    task = Instruction(template=template, output="answer", max_length=1000, max_new_tokens=400)
    row = {"input": document, "answer": answer}
    if task.problem(row, with_target=True) is not None:
        return
    feature = task.encode(row, tokenizer, with_target=True)
    supervised = feature["input_ids"][feature["prompt_tokens"] :]
    assert supervised[-1] == tokenizer.eos_token_id
    assert decoded(tokenizer, supervised[:-1]) == split_cue(template)[1] + answer.strip()
    assert feature["weight"] == len(supervised)
    asked = task.encode({"input": document}, tokenizer, with_target=False)["input_ids"]
    assert feature["input_ids"][: feature["prompt_tokens"]] == asked


@pytest.mark.parametrize(
    "template",
    [
        CLASSES,
        CLASSES.rstrip(),
        "{input}\n### Response:\n",
        "{input} -> ",
        "Is it? {input}",
        "{input}\n\n",
    ],
)
@pytest.mark.parametrize(
    "labels", [NESTED, SHARED, ("0", "1", "10"), ("!", "?", "'s"), ("é", "日本"), ("(a)", "(b)")]
)
@pytest.mark.parametrize(
    "document",
    [
        "the patient recovered",
        "it ends in a space ",
        "lines\n",
        "lines\n\n",
        "it's",
        "日本",
        "x" * 500,
        "(",
    ],
)
def test_the_prompt_at_training_is_the_prompt_at_prediction_for_each_label(
    tokenizer, template, labels, document
):
    task = closed(labels, template=template)
    asked = task.encode({"text": document}, tokenizer, with_target=False)["input_ids"]
    for label in labels:
        feature = task.encode({"text": document, "label": label}, tokenizer, with_target=True)
        assert feature["input_ids"][: feature["prompt_tokens"]] == asked
        assert (
            decoded(tokenizer, feature["input_ids"][feature["prompt_tokens"] : -1])
            == split_cue(template)[1] + label
        )


def test_the_supervised_places_are_those_whose_next_token_is_of_the_answer(tokenizer):
    task = closed(NESTED)
    rows = [
        {"text": "a drug", "label": "yes please"},
        {"text": "the bank raised rates and the bank", "label": "no"},
    ]
    features = list(
        encode_rows(
            task, rows, tokenizer, source="rows", numbers=itertools.count(1), with_target=True
        )
    )
    batch = task.collate(features, tokenizer)
    for row, feature in zip(range(2), features, strict=True):
        places = batch["supervised"][row].nonzero().flatten() + 1
        assert (
            batch["input_ids"][row, places].tolist()
            == feature["input_ids"][feature["prompt_tokens"] :]
        )


def test_the_loss_is_the_negative_log_likelihood_of_answer_and_end_mark(llama_parts):
    model, tokenizer = llama_parts
    task = closed(NESTED)
    rows = [
        {"text": "a drug", "label": "yes please"},
        {"text": "the bank raised rates and the bank", "label": "no"},
    ]
    features = list(
        encode_rows(
            task, rows, tokenizer, source="rows", numbers=itertools.count(1), with_target=True
        )
    )
    with torch.no_grad():
        expected = 0.0
        for feature in features:
            scores = model(torch.tensor([feature["input_ids"]])).logits[0].log_softmax(-1)
            expected -= sum(
                float(scores[i - 1, feature["input_ids"][i]])
                for i in range(feature["prompt_tokens"], len(feature["input_ids"]))
            )
        assert float(task.loss_sum(model, task.collate(features, tokenizer))) == pytest.approx(
            expected, rel=1e-5
        )


def test_a_list_of_keywords_is_learnt_as_a_text_with_the_separator(tokenizer):
    task = Instruction(
        template="{input}: ", output="keywords", separator=";", max_length=100, max_new_tokens=40
    )
    row = {"input": "a text", "keywords": ["new drug", "patient"]}
    assert task.gold_of(row) == ("new drug", "patient")
    feature = task.encode(row, tokenizer, with_target=True)
    learnt = decoded(tokenizer, feature["input_ids"][feature["prompt_tokens"] : -1])
    assert tuple(part.strip() for part in learnt.split(";")) == ("new drug", "patient")


def test_an_answer_that_is_a_number_is_learnt_as_the_label_of_that_name(tokenizer):
    task = closed(("0", "1"))
    one, same = (
        task.encode({"text": "x", "label": label}, tokenizer, with_target=True)["input_ids"]
        for label in ("1", 1.0)
    )
    assert one == same


def test_tokenizing_in_one_go_loses_no_token(tokenizer):
    for prompt, answer in itertools.product(
        ["", "a", "a ", "日", "a\n"], [" x", "\nx", " 日本", " 🙂"]
    ):
        ((before, after),) = tokenize_with_answers(tokenizer, [(prompt, answer)])
        assert before + after == tokenizer(prompt + answer)["input_ids"]


# Closed sets


def brute_force(model, prompt, answers, end) -> list[float]:
    """Each answer's probability: the model's, among the tokens that some answer goes on with."""
    closed_answers = [(*answer, end) for answer in answers]
    found = []
    for answer in closed_answers:
        probability = 1.0
        for place, token in enumerate(answer):
            allowed = sorted(
                {other[place] for other in closed_answers if other[:place] == answer[:place]}
            )
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer[:place]]])).logits[0, -1].double()
            probability *= float(logits[allowed].softmax(0)[allowed.index(token)])
        found.append(probability)
    return found


@pytest.mark.parametrize(
    "labels",
    [
        NESTED,
        SHARED,
        ("yes", "no"),
        ("label one", "label two"),
        ("a", "aa", "aaa", "b"),
        ("0", "1", "10", "100"),
    ],
)
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_probabilities_are_those_of_constrained_decoding_and_sum_to_one(base, labels, request):
    task = closed(labels)
    model, tokenizer = peftcls.load_base(request.getfixturevalue(base), task)
    rows = [
        {"text": text} for text in ("a drug", "the bank raised rates and a galaxy far away", "x")
    ]
    tokens = [tuple(tokenizer(" " + label)["input_ids"]) for label in labels]
    for row, answer in zip(rows, Predictor(model, task, tokenizer).predict(rows), strict=True):
        expected = brute_force(
            model,
            task.encode(row, tokenizer, with_target=False)["input_ids"],
            tokens,
            tokenizer.eos_token_id,
        )
        assert list(answer.probabilities) == list(labels)
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-5)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.get)


@given(
    st.sets(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=9).map(sorted),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_the_trie_of_any_answers_gives_probabilities_that_sum_to_one(answers, seed):
    trie = LabelTrie.build(answers, end=9)
    generator = torch.Generator().manual_seed(seed)
    logits = {prefix: torch.randn(2, 10, generator=generator) for prefix in {*trie.forks, ()}}
    table = trie.log_probabilities(logits).exp()
    assert table.shape == (2, len(answers))
    assert torch.allclose(table.sum(1), torch.ones(2, dtype=torch.float64))
    assert all(any(run[: len(prefix)] == prefix for run in trie.runs) for prefix in trie.forks), (
        "every fork lies on a run"
    )


def test_an_answer_is_not_at_a_disadvantage_for_being_long():
    trie = LabelTrie.build([(1, 2, 3, 4, 5), (6,)], end=0)
    table = trie.log_probabilities({(): torch.zeros(1, 10)}).exp()
    assert table.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("labels", [NESTED, SHARED])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_an_answer_depends_neither_on_batch_mates_nor_on_the_batch_size(base, labels, request):
    task = closed(labels)
    model, tokenizer = peftcls.load_base(request.getfixturevalue(base), task)
    predictor = Predictor(model, task, tokenizer)
    rows = [f"a drug {'and a galaxy far away ' * n}" for n in (0, 3, 1, 5, 2)]
    alone = [predictor.predict([row])[0] for row in rows]
    for batch_size, order in (
        (None, range(5)),
        (1, range(5)),
        (2, (4, 2, 0, 1, 3)),
        (3, (3, 3, 3, 0, 1, 2, 4)),
    ):
        for place, answer in zip(
            order, predictor.predict([rows[i] for i in order], batch_size=batch_size), strict=True
        ):
            assert answer.label == alone[place].label
            assert answer.probabilities == pytest.approx(alone[place].probabilities, abs=1e-5)


def test_the_answers_are_the_same_whichever_side_is_padded(llama_parts):
    model, tokenizer = llama_parts
    task, rows = closed(NESTED), ["a drug", "the bank raised rates and a galaxy far away"]
    found = []
    side = tokenizer.padding_side
    try:
        for tokenizer.padding_side in ("left", "right"):
            found.append(Predictor(model, task, tokenizer).predict(rows))
    finally:
        tokenizer.padding_side = side
    for left, right in zip(*found, strict=True):
        assert left.probabilities == pytest.approx(right.probabilities, abs=1e-5)


# Free answers


def test_a_generated_answer_is_text_and_says_whether_it_is_usable(llama_parts):
    model, tokenizer = llama_parts
    task = Instruction(template="{input}\nAnswer: ", max_length=100, max_new_tokens=5)
    for answer in Predictor(model, task, tokenizer).predict(["a drug", "the bank raised rates"]):
        assert isinstance(answer.text, str)
        assert isinstance(answer.usable, bool)
        assert (answer.label, answer.labels, answer.probabilities) == (None, None, None)


def biased(model, tokenizer, text: str):
    """A copy whose next token, wherever it stands, follows the given text and then the end mark."""
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    class Follows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.place = model, {}

        def forward(self, states):
            logits = torch.zeros(*states.shape[:-1], 500)
            logits[..., ids[min(self.place.setdefault("n", 0), len(ids) - 1)]] = 1.0
            self.place["n"] += 1
            return logits

    return Follows()


@pytest.mark.parametrize(
    ("written", "separator", "text", "labels", "usable"),
    [
        (" yes", None, "yes", None, True),
        (" drug; bank ;drug;; ", ";", "drug; bank ;drug;;", ("drug", "bank"), True),
        (" one, two", ";", "one, two", ("one, two",), True),
        (" ; ;", ";", "; ;", (), False),
        ("", None, "", None, False),
        ("  \n", None, "", None, False),
        (" 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9", None, None, None, False),
    ],
)
def test_an_answer_is_usable_when_it_ended_and_says_something(
    llama, written, separator, text, labels, usable
):
    task = Instruction(
        template="{input}\nAnswer: ",
        separator=separator,
        max_length=200,
        max_new_tokens=14,
        samples=1,
    )
    model, tokenizer = peftcls.load_base(llama, task)
    model.lm_head = biased(model.lm_head, tokenizer, written)
    answer = Predictor(model, task, tokenizer).predict(["a drug"])[0]
    assert answer.usable == usable
    assert answer.labels == labels
    if text is None:
        assert written.strip().startswith(answer.text)
    else:
        assert answer.text == text


def test_free_answers_do_not_depend_on_batch_mates(llama_parts):
    model, tokenizer = llama_parts
    predictor = Predictor(
        model,
        Instruction(template="{input}\nAnswer: ", max_length=150, max_new_tokens=6),
        tokenizer,
    )
    rows = ["a drug", "the bank raised rates and a galaxy far away emits radio waves", "x"]
    assert (
        [predictor.predict([row])[0] for row in rows]
        == predictor.predict(rows)
        == predictor.predict(rows, batch_size=2)
    )


def test_a_separator_gives_lists_that_are_scored_as_sets():
    task = Instruction(template="{input}: ", output="keywords", separator=";")
    answers = [
        peftcls.Answer(text="b; a", labels=("b", "a")),
        peftcls.Answer(text="", labels=(), usable=False),
    ]
    found = task.score(
        answers, [{"input": "a b", "keywords": "A;b"}, {"input": "c", "keywords": "c; d"}]
    )
    assert task.monitor == "f1"
    assert (found["f1"], found["unusable"]) == (0.5, 0.5)


def test_a_free_answer_is_scored_by_being_the_same_text():
    task = Instruction(template="{input}: ")
    answers = [peftcls.Answer(text="a b"), peftcls.Answer(text="c", usable=False)]
    assert task.score(
        answers, [{"input": "x", "output": " a b "}, {"input": "x", "output": "d"}]
    ) == {"exact_match": 0.5, "unusable": 0.5}


# A template that needs no input


def test_a_template_may_hold_the_instruction_alone(llama_parts):
    model, tokenizer = llama_parts
    task = Instruction(
        template="{instruction}\nAnswer: ", labels=("yes", "no"), max_length=64, max_new_tokens=8
    )
    assert task.columns(with_target=True) == ["instruction", "output"]
    feature = task.encode({"instruction": "a drug?", "output": "yes"}, tokenizer, with_target=True)
    assert decoded(tokenizer, feature["input_ids"]) == "a drug?\nAnswer: yes<|endoftext|>"
    assert [
        a.label in ("yes", "no")
        for a in Predictor(model, task, tokenizer).predict([{"instruction": "a drug?"}])
    ] == [True]


def test_the_text_of_a_row_is_all_that_its_reader_sees():
    row = {"instruction": "a drug?", "input": "the patient", "title": "medicine", "output": "yes"}
    assert "a drug?" in Instruction(template="{instruction}\nAnswer: ").text_of(row)
    assert all(
        part in Instruction(template="{title} {input} ").text_of(row)
        for part in ("the patient", "medicine")
    )
    assert "yes" not in Instruction().text_of(row)


def test_a_long_prompt_without_an_input_is_refused(tokenizer):
    task = Instruction(template="{instruction}\nAnswer: ", max_length=30, max_new_tokens=8)
    with pytest.raises(
        RowError,
        match=r"^has a prompt of \d+ tokens without 'input', expected fewer than 22; "
        "shorten its other columns or raise max_length$",
    ):
        task.encode({"instruction": "a drug " * 40}, tokenizer, with_target=False)


def test_a_template_without_any_column_asks_the_same_of_every_row(tokenizer):
    task = Instruction(template="Answer: ", max_length=30, max_new_tokens=8)
    assert task.columns(with_target=True) == ["output"]
    assert (
        decoded(tokenizer, task.encode({}, tokenizer, with_target=False)["input_ids"]) == "Answer:"
    )


def test_a_row_with_an_instruction_alone_is_refused_when_it_is_empty():
    task = Instruction(template="{instruction}\nAnswer: ")
    assert task.problem({"instruction": " ", "output": "yes"}, with_target=True) is not None


def test_a_missing_instruction_beside_an_input_is_allowed(tokenizer):
    row = {"instruction": None, "input": "a drug", "output": "yes"}
    assert Instruction().problem(row, with_target=True) is None
    assert "None" not in decoded(
        tokenizer, Instruction().encode(row, tokenizer, with_target=True)["input_ids"]
    )
