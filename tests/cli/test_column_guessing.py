"""What the command guesses from the values of a column, and what it says when it cannot."""

import logging

import pytest

from peftcls import RowError, read_rows
from peftcls.cli.column_guessing import guess_columns
from peftcls.data.reading import as_dataset


def kind_of(values, column="label"):
    rows = [
        {"text": f"message {n} about the boat", column: value} for n, value in enumerate(values)
    ]
    return guess_columns(as_dataset(rows), label=column).kind


@pytest.mark.parametrize(
    ("values", "column", "kind"),
    [
        ([n % 12 + 1 for n in range(60)], "label", "classification"),
        ([n % 30 for n in range(120)], "label", "classification"),
        ([str(n % 30) for n in range(120)], "intent", "classification"),
        ([n % 30 for n in range(360)], "intent_id", "classification"),
        ([n % 30 for n in range(360)], "topicCode", "classification"),
        (list(range(60)), "intent_id", "regression"),
        ([18 + n % 60 for n in range(240)], "age", "regression"),
        ([n / 7 for n in range(40)], "label", "regression"),
        ([n % 5 for n in range(40)], "score", "regression"),
        (["NaN", *(str(n / 7) for n in range(39))], "score", "regression"),
        ([f"{n // 7},{n % 7}" for n in range(40)], "score", "regression"),
        ([["a"], ["b"]] * 20, "label", "classification"),
        ([["a"], ["a", "b"]] * 20, "label", "multi-label"),
        ([["a"], []] * 20, "label", "multi-label"),
        (['["a"]', '["a", "b"]'] * 20, "label", "multi-label"),
        (["['a', 'b']", "['b']"] * 20, "label", "multi-label"),
        (["a;b", "a"] * 20, "label", "multi-label"),
        (["red; blue", "blue"] * 20, "tags", "multi-label"),
        (["red", "blue"] * 20, "tags", "classification"),
        ([["red"], ["red", "blue"]] * 20, "tags", "multi-label"),
        ([f"boat {n}; sail {n}; sea" for n in range(40)], "tags", "keywords"),
        ([f"tag {n}; tag {n % 4}" for n in range(12)], "tags", "keywords"),
        (["red; blue", "blue"] * 20, "keywords", "keywords"),
    ],
)
def test_the_kind_of_work_is_guessed_from_the_values(values, column, kind):
    assert kind_of(values, column) == kind


def test_many_labels_are_counted_over_all_rows():
    """In the first 2000 of these rows, each label comes about once."""
    assert kind_of([f"intent {n % 1500}" for n in range(4500)]) == "classification"


def test_values_that_are_no_labels_are_told_with_all_ways_out():
    with pytest.raises(
        RowError, match=r"40 different values in 40 rows.*--task regression.*--task"
    ):
        kind_of([f"answer {n}" for n in range(40)])


# Files without a header line


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_first_line_that_looks_like_a_row_is_a_warning(suffix, separator, tmp_path, caplog):
    lines = [f"{('spam', 'ham')[n % 2]}{separator}message {n}" for n in range(40)]
    path = tmp_path / f"rows.{suffix}"
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        assert len(read_rows(path)) == 39
    assert "'spam' is also a value of its column, in 19 of the first 39 rows" in caplog.text
    assert "columns=['label', 'text'] (--columns label,text)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        assert len(read_rows(path, columns=["label", "text"])) == 40
    assert not caplog.text


def test_a_name_that_occurs_once_below_its_column_is_no_warning(tmp_path, caplog):
    lines = ["text,label", *(f"message {n},{n % 2}" for n in range(60)), "text,label"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        read_rows(tmp_path / "rows.csv")
    assert not caplog.text


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("yes we do so {}", " alone, without 'reply' (for a pair give --text twice), label"),
        ("Ann Smith {}", "text column: 'question', label"),
        ("01-01 10:00:{} UTC", "text column: 'question', label"),
    ],
)
def test_a_second_text_that_is_not_read_is_told(reply, said):
    rows = [
        {
            "question": f"do you sell that article number {number} in the shop",
            "reply": reply.format(number),
            "fits": ("no", "yes")[number % 2],
        }
        for number in range(20)
    ]
    assert said in str(guess_columns(as_dataset(rows)))


def test_a_column_for_each_label_is_told_apart_from_several_candidates():
    rows = [
        {"message": f"message {n} about the boat", "toxic": n % 2, "insult": int(n % 3 == 0)}
        for n in range(20)
    ]
    with pytest.raises(RowError, match=r"a label of its own: --label toxic,insult\.$"):
        guess_columns(as_dataset(rows))


def test_a_first_line_of_texts_is_told_where_no_column_is_a_label(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"please do thing {n},intent {n}\n" for n in range(30)))
    with pytest.raises(RowError, match=r"'please do thing 0' looks like a text .* --columns, such"):
        guess_columns(read_rows(path))
