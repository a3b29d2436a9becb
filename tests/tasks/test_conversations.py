"""Conversations of several turns: earlier turns are a part of the prompt, and none gets lost."""

import json

import pytest
from tokenizers import processors

from peftcls import (
    Instruction,
    RowError,
    attach_lora,
    check_rows,
    load_base,
    load_predictor,
    read_rows,
)
from peftcls.data.reading import as_dataset
from peftcls.models.adapter_folder import save_adapter
from peftcls.tasks.conversations import turns_problem, write_turns
from peftcls.tasks.encoding import encode_table
from peftcls.tasks.splitting import split_off

EARLIER = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "{input} ok"}]
ROW = {"instruction": "Be brief.", "input": "the drug", "output": "yes", "earlier_turns": EARLIER}
CHAT = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n"
    "{% endfor %}"
)
TASK = Instruction(template="{instruction}\n{input}\nAnswer: ", max_length=64, max_new_tokens=8)


@pytest.fixture
def tokenizer(llama):
    return load_base(llama, TASK)[1]


def turns(*texts, system=None):
    """A row of messages that begins with the user."""
    listed = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(texts):
        listed.append({"role": ("user", "assistant")[number % 2], "content": text})
    return {"messages": listed}


def read(write, *rows):
    return read_rows(write("chats.jsonl", "\n".join(map(json.dumps, rows)))).to_list()


def test_earlier_turns_are_read_beside_the_last_question_and_its_answer(write):
    rows = read(write, turns("Hi?", "Hello.", "Who?", "Me."), turns("What?", "That.", system="Be."))
    assert rows == [
        {
            "instruction": "Who?",
            "input": "",
            "output": "Me.",
            "earlier_turns": [
                {"role": "user", "content": "Hi?"},
                {"role": "assistant", "content": "Hello."},
            ],
        },
        {"instruction": "Be.", "input": "What?", "output": "That.", "earlier_turns": None},
    ]
    (row,) = read(write, turns("Hi?", "Hello.", "Who?", system="Be."))
    assert (row["instruction"], row["input"], row["output"]) == ("Be.", "Who?", None)
    assert len(row["earlier_turns"]) == 2


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (turns("a", "b", "c", "d", system="x"), None),
        ({"messages": turns("a", "b")["messages"][1:]}, r"\['assistant'\]"),
        ({"messages": [{"role": "system", "content": "x"}]}, r"\[\]"),
        ({"messages": turns(*"abcdefghij")["messages"] * 2}, None),
        ({"messages": turns(*"abcdefghi")["messages"] * 2}, r"\[.*'assistant', \.\.\.\]"),
    ],
)
def test_turns_that_do_not_follow_each_other_are_refused_with_their_row(write, row, shown):
    if shown is None:
        assert len(read(write, row)) == 1
        return
    place = r"row 2 of chats.jsonl \(line 2\)"
    message = rf"{place} has the turns {shown} in column 'messages', expected one"
    with pytest.raises(RowError, match=message):
        read(write, turns("a", "b"), row)


def prompt_of(tokenizer, row, task=TASK):
    return tokenizer.decode(task.encode(row, tokenizer, with_target=False)["input_ids"])


def test_turns_are_written_plainly_where_there_is_no_chat_template(tokenizer):
    text = prompt_of(tokenizer, ROW)
    assert text == "user: Hi?\nassistant: {input} ok\n\nBe brief.\nthe drug\nAnswer:"
    alone = {name: value for name, value in ROW.items() if name != "earlier_turns"}
    for row in (alone, {**alone, "earlier_turns": None}, {**alone, "earlier_turns": []}):
        assert prompt_of(tokenizer, row) == "Be brief.\nthe drug\nAnswer:"


def test_turns_are_written_by_the_chat_template_of_the_tokenizer(tokenizer):
    tokenizer.chat_template = CHAT
    tokenizer.bos_token = None
    text = prompt_of(tokenizer, ROW)
    assert text == "<user>Hi?\n<assistant>{input} ok\nBe brief.\nthe drug\nAnswer:"


def test_a_first_token_of_the_tokenizer_is_not_written_twice(tokenizer):
    tokenizer.chat_template = CHAT
    tokenizer.bos_token = "<|endoftext|>"
    assert write_turns(EARLIER, tokenizer).startswith("<|endoftext|><user>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert write_turns(EARLIER, tokenizer).startswith("<user>")
    assert prompt_of(tokenizer, ROW).count("<|endoftext|>") == 1


def test_a_template_may_say_where_the_turns_are(tokenizer):
    task = Instruction(template="{instruction}\n{earlier_turns}{input}\nAnswer: ")
    assert prompt_of(tokenizer, ROW, task).startswith("Be brief.\nuser: Hi?\n")
    assert "earlier_turns" in task.columns(with_target=True)


def test_the_oldest_turns_are_left_out_of_a_prompt_that_is_too_long(tokenizer):
    many = [
        turn
        for n in range(9)
        for turn in (
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": f"answer {n}"},
        )
    ]
    row = {**ROW, "earlier_turns": many}
    feature = TASK.encode(row, tokenizer, with_target=False)
    text = tokenizer.decode(feature["input_ids"])
    assert feature["shortened"]
    assert "question 0" not in text
    assert text.endswith("answer 8\n\nBe brief.\nthe drug\nAnswer:")
    trained = TASK.encode(row, tokenizer, with_target=True)
    assert trained["input_ids"][: trained["prompt_tokens"]] == feature["input_ids"]


@pytest.mark.parametrize("wrong", ["Hi?", [{"role": "user"}], [{"role": "user", "content": 1}]])
def test_turns_of_another_form_are_refused(wrong):
    assert turns_problem({"earlier_turns": wrong}).endswith("a content, both texts")
    with pytest.raises(RowError, match="in column 'earlier_turns', expected a list of turns"):
        check_rows(TASK, as_dataset([{**ROW, "earlier_turns": wrong}]))


def test_turns_that_the_chat_template_refuses_are_a_problem_of_the_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no first question') }}"
    with pytest.raises(RowError, match="chat template of the base refuses: no first question"):
        write_turns(EARLIER, tokenizer)


def test_the_same_question_after_other_turns_is_another_text():
    rows = as_dataset([ROW, {**ROW, "earlier_turns": []}] * 3)
    assert TASK.text_of(rows[0]) == "Hi?\n{input} ok\nBe brief.\nthe drug"
    left, aside = split_off(TASK, rows, 0.5, name="test")
    assert {len(left), len(aside)} == {3}


def test_earlier_turns_are_trained_on_and_answered(llama, tmp_path):
    task = Instruction(
        template="{instruction}\n{input}\nAnswer: ", max_length=64, labels=("no", "yes")
    )
    rows = as_dataset([ROW, {**ROW, "earlier_turns": None, "output": "no"}] * 4)
    model, tokenizer = load_base(llama, task)
    table = encode_table(task, rows, tokenizer, "base")
    first, second = (tokenizer.decode(table.features[n]["input_ids"]) for n in range(2))
    assert first.startswith("user: Hi?\nassistant:")
    assert second.startswith("Be brief.\n")
    for name in ("one", "two"):
        save_adapter(tmp_path / name, attach_lora(model, task), task, tokenizer)
        model = load_base(llama, task)[0]
    alone = load_predictor(tmp_path / "one")
    together = load_predictor([tmp_path / "one", tmp_path / "two"])
    for answers in (alone.predict(rows), together.predict(rows, "two"), alone.predict(list(rows))):
        assert answers[0].probabilities != answers[1].probabilities
        assert answers[0].probabilities == pytest.approx(answers[2].probabilities)
