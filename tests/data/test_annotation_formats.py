"""Exports of Label Studio and doccano, and conversations: plain columns that the tasks read."""

import json

import datasets
import pytest

from peftcls import Classification, Instruction, RowError, check_rows, read_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def studio(text, *results, **more):
    annotation = {"was_cancelled": False, "result": list(results)}
    return {"id": 7, "data": {"text": text}, "annotations": [annotation], **more}


def choice(*names):
    return {"type": "choices", "from_name": "topic", "value": {"choices": list(names)}}


def mark(start, end, label):
    value = {"start": start, "end": end, "text": "x", "labels": [label]}
    return {"type": "labels", "from_name": "parts", "value": value}


def test_an_export_of_label_studio_has_a_column_for_each_question(write):
    skipped = {"was_cancelled": True, "result": [choice("other")]}
    task = studio("the drug", choice("med"))
    task["annotations"].append(skipped)
    path = write("a.json", json.dumps([task, studio("stocks fell", choice("money"))]))
    rows = read_rows(path)
    assert rows.to_list() == [
        {"text": "the drug", "topic": ["med"]},
        {"text": "stocks fell", "topic": ["money"]},
    ]
    learnt = Classification(label="topic").learn(rows)
    assert learnt.labels == ("med", "money")
    check_rows(learnt, rows)


def test_several_choices_marks_ratings_and_texts_are_read(write):
    rating = {"type": "rating", "from_name": "stars", "value": {"rating": 4}}
    remark = {"type": "textarea", "from_name": "note", "value": {"text": ["one", "two"]}}
    task = studio("the drug", choice("med", "new"), mark(0, 3, "ART"), rating, remark)
    (row,) = read_rows(write("a.json", json.dumps([task]))).to_list()
    assert row == {
        "text": "the drug",
        "topic": ["med", "new"],
        "spans": [{"start": 0, "end": 3, "label": "ART"}],
        "stars": 4,
        "note": "one\ntwo",
    }


def test_a_task_without_an_annotation_has_no_label(write):
    rows = [studio("the drug", choice("med")), {"data": {"text": "x"}, "annotations": []}]
    assert read_rows(write("a.json", json.dumps(rows)))["topic"][:] == [["med"], None]


def test_exports_of_doccano_are_read(write):
    rows = read_rows(
        write("a.jsonl", lines({"id": 1, "text": "the drug", "label": [[0, 3, "ART"]]}))
    )
    assert rows["spans"][0] == [{"start": 0, "end": 3, "label": "ART"}]
    assert "label" not in rows.column_names
    entity = {"id": 5, "label": "ART", "start_offset": 0, "end_offset": 3}
    rows = read_rows(
        write("b.jsonl", lines({"text": "the drug", "entities": [entity], "relations": []}))
    )
    assert rows.to_list() == [
        {"text": "the drug", "spans": [{"start": 0, "end": 3, "label": "ART"}]}
    ]
    rows = read_rows(write("c.jsonl", lines({"text": "x", "label": ["a", "b"]})))
    assert rows["label"][0] == ["a", "b"]


def test_conversations_are_instruction_input_and_output(write):
    chats = [
        {
            "id": 1,
            "messages": [
                {"role": "system", "content": "Is it spam?"},
                {"role": "user", "content": "You won!"},
                {"role": "assistant", "content": "yes"},
            ],
        },
        {"id": 2, "messages": [{"role": "user", "content": "Say yes."}]},
    ]
    rows = read_rows(write("a.jsonl", lines(*chats)))
    assert rows.to_list() == [
        {"id": 1, "instruction": "Is it spam?", "input": "You won!", "output": "yes"},
        {"id": 2, "instruction": "Say yes.", "input": "", "output": None},
    ]
    check_rows(Instruction(), rows, with_target=False)
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    rows = read_rows(write("b.json", json.dumps([{"conversations": turns}])))
    assert rows.to_list() == [{"instruction": "Hi?", "input": "", "output": "Hello."}]
    check_rows(Instruction(), rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}] * 2},
            r"row 2 of a.jsonl .line 2. has the turns \['user', 'user'\] in column 'messages', exp",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "row 2 of a.jsonl .line 2. has a turn by 'tool'",
        ),
        (
            {**studio("x", choice("a")), "annotations": [{"result": []}, {"result": []}]},
            "row 2 of a.jsonl .line 2. has 2 annotations .task 7.",
        ),
        (
            studio("x", {"type": "brushlabels", "from_name": "b", "value": {"rle": []}}),
            "row 2 of a.jsonl .line 2. has a result of the type 'brushlabels'",
        ),
        (
            studio("x", {**choice("a"), "from_name": "text"}),
            "row 2 of a.jsonl .line 2. has a question 'text' and data of the same name",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_one_sentence(write, row, message):
    with pytest.raises(RowError, match=message):
        read_rows(write("a.jsonl", lines({"text": "first"}, row)))


def test_columns_of_these_names_that_are_something_else_stay(write):
    row = {"messages": ["a"], "data": "b", "label": [[1, 2]], "entities": ["c"]}
    assert read_rows(write("a.jsonl", lines(row))).to_list() == [row]


def test_several_choices_of_a_short_export_are_a_list_of_labels(tmp_path):
    path = tmp_path / "short.json"
    rows = [{"text": f"text {n}", "mood": {"choices": ["good", "strong"]}} for n in range(3)]
    path.write_text(json.dumps(rows))
    assert read_rows(path)["mood"][:] == [["good", "strong"]] * 3


def test_a_question_with_one_choice_here_and_several_there_is_a_list_everywhere(tmp_path):
    path = tmp_path / "short.json"
    moods = ["good", {"choices": ["good", "strong"]}, None]
    path.write_text(json.dumps([{"text": "a", "mood": mood, "by": "me"} for mood in moods]))
    rows = read_rows(path)
    assert rows["mood"][:] == [["good"], ["good", "strong"], None]
    assert rows["by"][:] == ["me"] * 3


def test_marked_parts_of_a_short_export_are_spans(tmp_path):
    path = tmp_path / "short.json"
    part = {"start": 0, "end": 3, "text": "the", "labels": ["ART", "WORD"]}
    path.write_text(json.dumps([{"text": "the drug", "parts": [part]}, {"text": "none"}]))
    spans = [{"start": 0, "end": 3, "label": label} for label in ("ART", "WORD")]
    assert read_rows(path).to_list() == [
        {"text": "the drug", "spans": spans},
        {"text": "none", "spans": None},
    ]


def test_a_place_in_a_taxonomy_is_a_label(write):
    places = {"taxonomy": [["animals", "dogs"], ["new"]]}
    result = {"type": "taxonomy", "from_name": "topic", "value": places}
    rows = read_rows(write("a.json", json.dumps([studio("a puppy", result)])))
    assert rows["topic"][:] == [["animals/dogs", "new"]]


def test_several_choices_in_a_csv_cell_are_labels(write):
    cells = ['"{""choices"": [""good"", ""strong""]}"', "good", "strong"]
    path = write("a.csv", "text,mood\n" + "".join(f"a text,{cell}\n" for cell in cells))
    rows = read_rows(path)
    task = Classification(label="mood", multi_label=True).learn(rows)
    assert task.labels == ("good", "strong")
    check_rows(task, rows)


def test_turns_with_several_parts_are_their_paragraphs(write):
    parts = [{"type": "text", "text": "Is it spam?"}, {"type": "text", "text": "You won!"}]
    chat = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    }
    assert read_rows(write("a.jsonl", lines(chat))).to_list() == [
        {"instruction": "Is it spam?\nYou won!", "input": "", "output": "yes"}
    ]
    chat["messages"][0]["content"] = [{"type": "image_url", "image_url": "x"}]
    with pytest.raises(RowError, match="has a turn with a part of the type 'image_url' in column"):
        read_rows(write("b.jsonl", lines(chat)))
    chat["messages"][0]["content"] = None
    with pytest.raises(RowError, match="has a turn with None in column 'messages', expected a te"):
        read_rows(write("c.jsonl", lines(chat)))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ([{"rating": 4}], 4),
        ([{"number": 2.5}], 2.5),
        ([{"taxonomy": [["animals", "dogs"], ["new"]]}], ["animals/dogs", "new"]),
        ({"choices": ["a", "b"]}, ["a", "b"]),
    ],
)
def test_answers_of_a_short_export_are_numbers_and_labels(tmp_path, cell, expected):
    path = tmp_path / "short.json"
    path.write_text(json.dumps([{"text": "x", "answer": cell}] * 2))
    assert read_rows(path)["answer"][:] == [expected] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"parts": [{"start": "/p[1]", "end": "/p[2]", "labels": ["X"]}]},
        {"parts": [{"start": 0.53, "end": 2.9, "labels": ["X"]}]},
        {"parts": [{"start": None, "end": None, "labels": []}]},
        {"spans": None, "parts": [{"start": 0, "end": 1, "labels": ["X"]}]},
    ],
)
def test_parts_that_have_no_place_in_a_text_stay_as_they_are(tmp_path, row):
    path = tmp_path / "short.json"
    path.write_text(json.dumps([{"text": "x", **row}]))
    assert read_rows(path)["parts"][0] == row["parts"]
