"""Groups and weights are examined as a training would read them."""

import pytest

from peftcls import Classification, RowError, examine_rows
from peftcls.cli import main
from peftcls.models.tokenizers import load_tokenizer_only

LABELS = ("ham", "spam")


def rows(count: int = 48, groups: int = 12) -> list[dict]:
    return [
        {
            "text": f"message number {n} of many",
            "label": LABELS[n % 2],
            "customer": f"c{n // 2 % groups}",
            "weight": "1",
        }
        for n in range(count)
    ]


def write_csv(path, table):
    lines = [",".join(table[0])]
    lines += [",".join(map(str, row.values())) for row in table]
    path.write_text("\n".join(lines))
    return str(path)


def codes(examination) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(each.severity, each.what, each.rows) for each in examination.findings]


def test_good_weights_and_groups_have_no_finding():
    examination = examine_rows(Classification(weight="weight"), rows(), group="customer")
    assert not examination.findings


def test_weights_that_are_no_numbers_are_one_finding(bert):
    table = rows()
    table[3]["weight"], table[5]["weight"] = "much", "-1"
    table[3]["text"] *= 60  # long enough to be encoded, which reads the weight
    task = Classification(weight="weight")
    examination = examine_rows(task, table, tokenizer=load_tokenizer_only(bert))
    assert codes(examination) == [("error", "bad-weight", (4, 6))]
    (finding,) = examination.errors
    assert finding.sentence == (
        "row 4 has 'much' in column 'weight', expected a weight of at least 0, such as 0.5."
    )


def test_rows_that_count_nothing_are_a_note_and_a_table_of_them_an_error():
    table = rows()
    table[7]["weight"] = "0"
    task = Classification(weight="weight")
    assert codes(examine_rows(task, table)) == [("note", "zero-weight", (8,))]
    nothing = [{**row, "weight": "0"} for row in table]
    (finding,) = examine_rows(task, nothing).errors
    assert finding.sentence.startswith("the table has the weight 0 in column 'weight' of every")


def test_a_column_of_weights_that_is_not_there_is_an_error():
    (finding,) = examine_rows(Classification(weight="wieght"), rows()).errors
    assert finding.what == "no-column"
    assert finding.sentence.endswith("Did you mean 'weight'?")


def test_a_column_of_weights_leaks_no_label():
    table = [{**row, "weight": "2" if row["label"] == "spam" else "1"} for row in rows()]
    assert codes(examine_rows(Classification(), table)) == [("warning", "giveaway", ())]
    assert not examine_rows(Classification(weight="weight"), table).findings


def test_a_row_without_a_group_is_an_error():
    table = rows()
    table[7]["customer"] = " "
    examination = examine_rows(Classification(), table, group="customer")
    assert codes(examination) == [("error", "no-group", (8,))]
    with pytest.raises(RowError, match="Did you mean 'customer'"):
        examine_rows(Classification(), table, group="custmer")


def test_few_groups_and_a_label_of_one_of_them_are_warnings():
    table = rows(groups=4)
    table[0]["label"] = table[8]["label"] = "rare"
    examination = examine_rows(Classification(), table, group="customer")
    few, one_group = (
        next(each for each in examination.findings if each.what == what)
        for what in ("few-groups", "one-group-label")
    )
    assert "the rows are 4 groups by column 'customer' and by text, expected" in few.sentence
    assert "the largest has 12 of 48 rows" in few.sentence
    assert one_group.rows == (1, 9)
    assert "only one group has rows with the label 'rare'" in one_group.sentence


def test_the_command_says_what_a_training_would_refuse(tmp_path, capsys):
    train = write_csv(tmp_path / "train.csv", rows(groups=1))
    options = ["--group", "customer", "--weight", "weight", "--text", "text", "--label", "label"]
    assert main(["check", train, *options]) == 1
    sentence = "train.csv has 1 group by column 'customer' and by text, too few to put 15% of them"
    assert sentence in capsys.readouterr().out
    out = str(tmp_path / "run")
    assert main(["train", train, *options, "--model", "demo", "--out", out, "--dry-run"]) == 1
    assert sentence in capsys.readouterr().err

    train = write_csv(tmp_path / "train.csv", rows())
    assert main(["check", train, *options]) == 0
    test = write_csv(tmp_path / "test.csv", [{**row, "text": "x y"} for row in rows(2)])
    assert main(["check", train, "--test", test, *options]) == 1
    sentence = "rows with 'c0' in column 'customer' are in FILE and in --test, expected each"
    assert sentence in capsys.readouterr().out


def test_what_stands_for_a_weight_in_other_rows_does_not_matter(bert, tmp_path):
    train = write_csv(tmp_path / "train.csv", rows(40))
    valid = write_csv(tmp_path / "valid.csv", [{**row, "weight": "kg"} for row in rows(4)])
    command = ["train", train, "--valid", valid, "--test", valid, "--weight", "weight"]
    command += ["--text", "text", "--label", "label", "--model", bert, "--max-length", "16"]
    assert main([*command, "--dry-run", "--out", str(tmp_path / "run")]) == 0
