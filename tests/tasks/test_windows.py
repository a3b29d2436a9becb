"""Long texts: windows read every token, alone or with neighbours; a short text is read as ever."""

import itertools

import pytest
from conftest import byte_level_tokenizer, word_piece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import peftcls
from peftcls import Classification, Regression, RowError
from peftcls.data.reading import as_dataset
from peftcls.engine import head_logits
from peftcls.tasks.encoding import encode_table
from peftcls.tasks.text_encoding import MIN_TEXT_TOKENS, OVERLAP_DIVISOR, encode_texts

TOKENIZERS = {"word pieces": word_piece_tokenizer(), "bytes": byte_level_tokenizer()}
FILLER = "stock prices fell after the bank raised rates and a galaxy far away emits radio waves"
WORDS = f"the patient was given a new drug and recovered {FILLER}".split()
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=90).map(" ".join)


def in_windows(row, tokenizer, max_length):
    (feature,) = encode_texts([row], tokenizer, max_length=max_length, long_text="windows")
    return feature


def windows_of(feature):
    """The windows of a feature, each a list of tokens."""
    ends = [sum(feature["windows"][: n + 1]) for n in range(len(feature["windows"]))]
    return [
        feature["input_ids"][end - length : end]
        for end, length in zip(ends, feature["windows"], strict=True)
    ]


def bare(ids, tokenizer):
    return [token for token in ids if token not in tokenizer.all_special_ids]


def ids_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=texts, max_length=st.integers(MIN_TEXT_TOKENS, 60))
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_token_and_repeat_a_quarter(kind, text, max_length):
    tokenizer = TOKENIZERS[kind]
    feature = in_windows([text], tokenizer, max_length)
    windows = [bare(window, tokenizer) for window in windows_of(feature)]
    room = max_length - tokenizer.num_special_tokens_to_add()
    overlap = room // OVERLAP_DIVISOR
    assert all(len(window) == room for window in windows[:-1])
    assert len(windows) == 1 or overlap < len(windows[-1]) <= room
    assert all(a[-overlap:] == b[:overlap] for a, b in itertools.pairwise(windows) if overlap)
    assert windows[0] + [token for window in windows[1:] for token in window[overlap:]] == ids_of(
        text, tokenizer
    )
    assert feature["shortened"] is False


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=texts, second=texts, max_length=st.integers(30, 60))
@settings(max_examples=60, deadline=None)
def test_the_shorter_text_of_a_pair_is_whole_in_every_window_of_the_longer(
    kind, text, second, max_length
):
    tokenizer = TOKENIZERS[kind]
    first, other = (
        ids_of(text, tokenizer),
        ids_of(second if kind == "word pieces" else "\n" + second, tokenizer),
    )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - min(len(first), len(other))
    try:
        feature = in_windows([text, second], tokenizer, max_length)
    except RowError:
        assert room < MIN_TEXT_TOKENS
        return
    windows = [bare(window, tokenizer) for window in windows_of(feature)]
    assert max(feature["windows"]) <= max_length
    short, long = (other, first) if len(first) > len(other) else (first, other)
    if short is other:
        assert all(window[-len(short) :] == short for window in windows)
        parts = [window[: -len(short)] for window in windows]
    else:
        assert all(window[: len(short)] == short for window in windows)
        parts = [window[len(short) :] for window in windows]
    overlap = max(room // OVERLAP_DIVISOR, 0)
    assert parts[0] + [token for part in parts[1:] for token in part[overlap:]] == long


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(
    rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
    max_length=st.integers(MIN_TEXT_TOKENS, 60),
    pair=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_row_is_shortened_where_it_has_more_tokens_than_fit(kind, rows, max_length, pair):
    tokenizer = TOKENIZERS[kind]
    asked = [row if pair else row[:1] for row in rows]
    whole = [
        sum(
            len(ids_of(text if kind == "word pieces" or not place else "\n" + text, tokenizer))
            for place, text in enumerate(row)
        )
        + tokenizer.num_special_tokens_to_add(pair=pair)
        for row in asked
    ]
    found = list(encode_texts(asked, tokenizer, max_length=max_length, long_text="truncate"))
    assert [feature["shortened"] for feature in found] == [tokens > max_length for tokens in whole]
    assert [len(feature["input_ids"]) for feature in found] == [
        min(tokens, max_length) for tokens in whole
    ]


@pytest.mark.parametrize(
    ("together", "characters"), [(1, 2**20), (2, 2**20), (256, 2**20), (256, 100)]
)
def test_a_row_that_cannot_be_encoded_is_named_whatever_is_read_with_it(
    together, characters, monkeypatch
):
    monkeypatch.setattr(peftcls.tasks.encoding, "MAX_CHUNK_ROWS", together)
    monkeypatch.setattr(peftcls.tasks.encoding, "MAX_CHUNK_CHARACTERS", characters)
    task = Classification(text=("a", "b"), labels=("no", "yes"), max_length=16, long_text="windows")
    rows = [
        {"a": "the bank", "b": FILLER if number != 4 else "x", "label": "no"} for number in range(5)
    ]
    rows += [{"a": FILLER, "b": FILLER, "label": "no"}, rows[0]]
    encoded, found = (
        peftcls.tasks.encoding.encode_rows(
            task, rows, TOKENIZERS["word pieces"], source="t.csv", numbers=itertools.count(10)
        ),
        [],
    )
    with pytest.raises(RowError, match=r"^row 15 of t\.csv has two long texts"):
        found += encoded
    assert [len(feature["windows"]) > 1 for feature in found] == [True] * 4 + [False]


def test_the_token_types_of_a_pair_are_those_of_its_windows():
    tokenizer = TOKENIZERS["word pieces"]
    feature = in_windows(["the patient", FILLER], tokenizer, 20)
    assert len(feature["windows"]) > 1
    lines = peftcls.tasks.text_encoding.collate_texts([feature, feature], tokenizer)
    assert lines["windows"].tolist() == [len(feature["windows"])] * 2
    first = len(ids_of("the patient", tokenizer)) + 2
    for types, mask in zip(
        lines["token_type_ids"].tolist(), lines["attention_mask"].sum(1).tolist(), strict=True
    ):
        assert types == [0] * first + [1] * (mask - first) + [0] * (len(types) - mask)


def test_two_long_texts_that_leave_a_window_no_room_are_told_with_their_row():
    task = Classification(text=("a", "b"), labels=("no", "yes"), max_length=16, long_text="windows")
    rows = as_dataset(
        [{"a": "the bank", "b": FILLER, "label": "no"}, {"a": FILLER, "b": FILLER, "label": "yes"}]
    )
    tokens = len(ids_of(FILLER, TOKENIZERS["word pieces"]))
    with pytest.raises(
        RowError,
        match=rf"^row 2 of rows has two long texts: beside the {tokens} tokens of the shorter one "
        r"a window of 16 has no room for the other; "
        r"raise max_length or use long_text='truncate'\.$",
    ):
        encode_table(task, rows, TOKENIZERS["word pieces"], "base")


def test_a_pair_that_just_fits_needs_no_room_for_windows():
    tokenizer, text = TOKENIZERS["word pieces"], "the patient was given"
    both = 2 * len(ids_of(text, tokenizer)) + 3
    assert both < 2 * MIN_TEXT_TOKENS
    assert in_windows([text, text], tokenizer, both)["windows"] == [both]
    with pytest.raises(RowError, match="no room"):
        in_windows([text, text], tokenizer, both - 1)


def predictor(base, task):
    model, tokenizer = peftcls.load_base(base, task)
    return peftcls.Predictor(model.double(), task, tokenizer)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_a_text_that_fits_gets_the_answer_that_it_gets_without_windows(base, pair, request):
    rows = (
        [("the patient", "recovered"), ("stock prices", "fell")]
        if pair
        else ["the patient recovered", "stock prices fell after all"]
    )
    text = ("a", "b") if pair else "text"
    cut, read = (
        predictor(
            request.getfixturevalue(base),
            Classification(text=text, labels=("no", "yes"), max_length=32, long_text=way),
        )
        for way in ("truncate", "windows")
    )
    for one, other in zip(cut.predict(rows), read.predict(rows), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-12)


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_the_number_of_a_long_text_is_the_mean_of_its_windows_numbers(base, request):
    task = Regression(mean=3.0, deviation=2.0, max_length=16, long_text="windows")
    found = predictor(request.getfixturevalue(base), task)
    text = f"{FILLER} see you at lunch {FILLER}"
    windows = windows_of(task.encode({"text": text}, found.tokenizer, with_target=False))
    assert len(windows) > 2
    values = [
        task.decode(
            found.model, task.collate([{"input_ids": window}], found.tokenizer), [], found.tokenizer
        )[0].value
        for window in windows
    ]
    assert max(values) - min(values) > 1e-4
    assert found.predict(["the patient", text])[1].value == pytest.approx(sum(values) / len(values))


def test_a_word_at_the_end_of_a_long_text_is_seen_with_windows_alone(bert, tmp_path):
    rows = [
        {"text": f"{' '.join(WORDS[n : n + 14])} {FILLER} {end}", "label": label}
        for n in range(6)
        for end, label in (("free prize, call now!", "spam"), ("see you at lunch", "ham"))
    ]
    score = {}
    for way in ("truncate", "windows"):
        task = Classification(max_length=24, long_text=way).learn(rows)
        model, tokenizer = peftcls.load_base(bert, task)
        config = peftcls.TrainConfig(
            tmp_path / way, epochs=8, batch_size=6, learning_rate=3e-3, head_init="random"
        )
        trainer = peftcls.Trainer(peftcls.train_only(model, task, "all"), task, tokenizer, config)
        trainer.fit(rows)
        score[way] = trainer.evaluate(rows)["accuracy"]
    assert score == {"truncate": 0.5, "windows": 1.0}


def test_a_run_with_windows_that_was_interrupted_goes_on(bert, tmp_path, text_rows, monkeypatch):
    task = Classification(max_length=8, long_text="windows").learn(text_rows)
    model, tokenizer = peftcls.load_base(bert, task)
    trainer = peftcls.Trainer(
        peftcls.attach_lora(model, task, rank=2),
        task,
        tokenizer,
        peftcls.TrainConfig(tmp_path, epochs=2, batch_size=8),
    )
    step = trainer._step

    def interrupted(table, indices, number, steps):
        if number == 3:
            raise KeyboardInterrupt
        return step(table, indices, number, steps)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(text_rows)
    trainer.fit(text_rows, resume=True)
    assert trainer.progress.step == 4


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["label", "answer"])
def test_the_windows_of_one_long_document_are_computed_a_few_at_a_time(
    base, kind, request, monkeypatch
):
    document = " ".join(WORDS * 30)
    if kind == "label":
        task = Classification(labels=("no", "yes"), max_length=32, long_text="windows")
        rows = [{"text": document}]
    else:
        task = peftcls.ExtractiveQA(max_length=48, stride=8)
        rows = [{"question": "what was given?", "context": document}]
    model, tokenizer = peftcls.load_base(request.getfixturevalue(base), task)
    predictor = peftcls.Predictor(model.double(), task, tokenizer)
    sizes = []
    embeddings = head_logits.unwrapped(model).base_model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].numel()))
    (whole,) = predictor.predict(rows)
    sizes.clear()
    monkeypatch.setattr(head_logits, "batch_tokens", lambda device: 256)
    (in_parts,) = predictor.predict(rows)
    assert len(sizes) > 2
    assert max(sizes) <= 256
    if kind == "answer":
        assert (in_parts.text, in_parts.start) == (whole.text, whole.start)
    else:
        assert in_parts.probabilities == pytest.approx(whole.probabilities, abs=1e-9)
