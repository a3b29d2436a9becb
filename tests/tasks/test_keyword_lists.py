"""Several lists of keywords are drawn for a text, and at least two have to agree."""

import dataclasses

import pytest
import torch

import peftcls
from peftcls import Instruction, Predictor
from peftcls.engine.model_state import state_of
from peftcls.tasks import generation, keyword_lists
from peftcls.tasks.generation import draw_tokens, generate_tokens
from peftcls.tasks.keyword_lists import voted

TEMPLATE = "{input}\nKeywords:"
TASK = Instruction(template=TEMPLATE, separator=";", max_length=120, max_new_tokens=24)
TEXTS = ["a drug", "the bank raised rates", "yes", "a new drug for patients of the hospital"]


@pytest.fixture(scope="module")
def llama_parts(llama):
    return peftcls.load_base(llama, TASK)


@pytest.fixture
def prompts(llama_parts):
    _, tokenizer = llama_parts
    return [tokenizer(TEMPLATE.format(input=text))["input_ids"] for text in TEXTS]


def with_logits(model, logits_at):
    """The model with a head that gives the same logits to every text: those of each place."""

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.place = model.lm_head, 0

        def forward(self, states):
            logits = logits_at(self.place).expand(*states.shape[:-1], -1)
            self.place += 1
            return logits

    model.lm_head = Head()
    return model


# Votes


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([("a", "b"), ("b", "c"), ("d",)], ("b",)),
        ([("a", "b"), ("b", "a"), ("b",)], ("b", "a")),
        ([("COVID-19", "x"), ("covid 19",), ("y",)], ("COVID-19",)),
        ([("a", "A"), ("b",)], ("a", "A")),
        ([("a", "b"), ("c",)], ("a", "b")),
        ([(), ("c", "d")], ("c", "d")),
        ([(), ()], ()),
        ([("b", "a")], ("b", "a")),
    ],
)
def test_keywords_of_two_lists_are_the_answer_most_votes_first(lists, expected):
    assert voted(lists) == expected


# Drawing


def test_what_is_drawn_depends_on_the_prompt_alone(llama_parts, prompts):
    model, tokenizer = llama_parts
    together = draw_tokens(model, prompts, tokenizer, 12, 3)
    for prompt, drawn in zip(prompts, together, strict=True):
        (alone,) = draw_tokens(model, [prompt], tokenizer, 12, 3)
        width = max(map(len, alone))
        assert [ids[:width] for ids in drawn] == alone
        assert len(set(map(tuple, drawn))) == 3
    (more,) = draw_tokens(model, prompts[:1], tokenizer, 12, 5)
    assert len(more) == 5


def test_prompts_that_are_computed_once_give_the_same_lists(llama_parts, prompts, monkeypatch):
    model, tokenizer = llama_parts
    with torch.no_grad():
        with_cache = draw_tokens(model, prompts, tokenizer, 12, 3)
    monkeypatch.setattr(generation, "can_continue", lambda model: False)
    assert draw_tokens(model, prompts, tokenizer, 12, 3) == with_cache
    assert state_of(model).capabilities.prefix is True


def test_tokens_are_drawn_by_their_probability(llama):
    model, tokenizer = peftcls.load_base(llama, TASK)
    shares = torch.zeros(500)
    shares[[7, 8, 9]] = torch.tensor([0.6, 0.3, 0.1])
    logits = shares.log() * generation.TEMPERATURE
    model = with_logits(model, lambda _: logits)
    prompts = [[number] for number in range(10, 410)]
    drawn = torch.tensor(draw_tokens(model, prompts, tokenizer, 2, 8)).flatten()
    counts = torch.bincount(drawn, minlength=500) / len(drawn)
    assert counts == pytest.approx(shares.numpy(), abs=0.025)
    assert counts[shares == 0].sum() == 0


# Answers


def test_the_answer_is_what_the_drawn_lists_agree_on(llama_parts):
    model, tokenizer = llama_parts
    answers = Predictor(model, TASK, tokenizer).predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        prompt = tokenizer(TEMPLATE.format(input=text))["input_ids"]
        (drawn,) = draw_tokens(model, [prompt], tokenizer, 24, 8)
        lists = []
        for ids in drawn:
            parts = generation.text_of_tokens(ids, tokenizer).split(";")
            lists.append(tuple(dict.fromkeys(part.strip() for part in parts if part.strip())))
        assert answer.labels == voted(lists)
        assert answer.text == "; ".join(answer.labels)
    assert answers == Predictor(model, TASK, tokenizer).predict(TEXTS)


def test_many_lists_are_drawn_in_parts(llama_parts, monkeypatch):
    model, tokenizer = llama_parts
    expected = Predictor(model, TASK, tokenizer).predict(TEXTS)
    drawn = []
    width = max(len(tokenizer(TEMPLATE.format(input=text))["input_ids"]) for text in TEXTS)
    monkeypatch.setattr(keyword_lists, "MAX_TOKENS", 2 * 8 * width)

    def draw(model, prompts, *settings, **more):
        drawn.append(len(prompts))
        return draw_tokens(model, prompts, *settings, **more)

    monkeypatch.setattr(keyword_lists, "draw_tokens", draw)
    assert Predictor(model, TASK, tokenizer).predict(TEXTS) == expected
    assert drawn == [2, 2]


def test_with_one_sample_it_is_the_likeliest_list(llama_parts, prompts):
    model, tokenizer = llama_parts
    one = dataclasses.replace(TASK, samples=1)
    answers = Predictor(model, one, tokenizer).predict(TEXTS)
    likeliest = generate_tokens(model, prompts, tokenizer, 24)
    for answer, ids in zip(answers, likeliest, strict=True):
        assert generation.text_of_tokens(ids, tokenizer).startswith(answer.text)


def test_a_drawn_list_that_repeats_itself_ends_there(llama):
    model, tokenizer = peftcls.load_base(llama, TASK)
    ids = tokenizer(" one; two; one; two; one; two; one; two; one; two;")["input_ids"]

    def certain(place):
        logits = torch.full((500,), -torch.inf)
        logits[ids[place % len(ids)]] = 0.0
        return logits

    state_of(model).fast_paths = peftcls.FastPaths(prefix=False)
    model = with_logits(model, certain)
    (answer,) = Predictor(model, TASK, tokenizer).predict(["a drug"])
    assert (answer.labels, answer.usable) == (("one", "two"), False)
    assert model.lm_head.place == len(tokenizer(" one; two; one;")["input_ids"])


# Settings


def test_folders_from_before_have_one_list_and_new_ones_say_how_many():
    assert (TASK.lists, Instruction().lists, Instruction(labels=("a", "b")).lists) == (8, 1, 1)
    fields = TASK.to_json()
    assert "samples" in fields
    assert Instruction.from_json(fields) == TASK
    del fields["samples"]
    assert Instruction.from_json(fields).lists == 1
    assert "samples" not in Instruction().to_json()
    assert Instruction.from_json(Instruction().to_json()) == Instruction()
    assert dataclasses.replace(TASK, separator=None).lists == 1


def test_models_are_compared_by_their_likeliest_list():
    assert TASK.for_comparison().lists == 1
    assert Instruction().for_comparison() == Instruction()


@pytest.mark.parametrize(
    ("written", "keywords"),
    [
        (" COVID-19; COVID 19; virus", ("COVID-19", "virus")),
        (" ; one; ; two; ; virus", ("one", "two", "virus")),
    ],
)
def test_other_spellings_and_gaps_do_not_end_a_list(llama, written, keywords):
    model, tokenizer = peftcls.load_base(llama, TASK)
    ids = [*tokenizer(written)["input_ids"], tokenizer.eos_token_id]

    def certain(place):
        logits = torch.full((500,), -torch.inf)
        logits[ids[min(place, len(ids) - 1)]] = 0.0
        return logits

    state_of(model).fast_paths = peftcls.FastPaths(prefix=False)
    task = dataclasses.replace(TASK, max_new_tokens=60)
    (answer,) = Predictor(with_logits(model, certain), task, tokenizer).predict(["a drug"])
    assert (answer.labels, answer.usable) == (keywords, True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"separator": ";", "samples": 0}, "samples=0: expected a number of lists from 1 to 64"),
        ({"separator": ";", "samples": 65}, "samples=65: expected a number of lists from 1"),
        ({"samples": 4}, "samples=4 without separator: only lists can agree in parts"),
        ({"separator": ";", "samples": "4"}, "samples='4': expected "),
    ],
)
def test_numbers_of_lists_that_cannot_be(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Instruction(**settings)
