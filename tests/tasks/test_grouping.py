"""Splits by groups: what belongs together stays on one side, and labels are spread evenly."""

import random
from collections import Counter

import pytest

from peftcls import Classification, Regression, RowError
from peftcls.cli.sources import Source
from peftcls.cli.tables import Files, split_rows
from peftcls.data.reading import as_dataset, name_source
from peftcls.data.row_numbers import row_numbers
from peftcls.tasks.grouping import connected_groups, put_groups_aside, spread_groups
from peftcls.tasks.splitting import row_groups, split_off


def customers(rows=240, count=40, seed=0):
    """Rows of customers of unequal size; a customer has mostly one label."""
    draw = random.Random(seed)
    made = []
    for number in range(rows):
        customer = min(draw.randrange(count), draw.randrange(count))
        label = "no" if (customer % 3 == 0) == (draw.random() < 0.8) else "yes"
        row = {"text": f"text {number}", "label": label, "customer": f"c{customer}"}
        made.append({**row, "score": float(number % 50)})
    return made


def learnt(rows):
    return Classification().learn(rows), name_source(as_dataset(rows), "t.csv")


def test_rows_that_share_a_key_by_way_of_others_are_one_group():
    groups = connected_groups(["a", "b", "c", "a", "d"], [1, 2, 2, 3, 3])
    assert groups == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", [Classification(), Regression()], ids=["labels", "numbers"])
def test_no_group_is_on_both_sides_and_the_shares_hold(task, seed):
    rows = customers(seed=seed)
    table = as_dataset(rows)
    kept, aside = split_off(task.learn(rows), table, 0.2, name="test", seed=seed, group="customer")
    assert set(kept["customer"]).isdisjoint(aside["customer"])
    assert sorted([*row_numbers(kept), *row_numbers(aside)]) == list(range(1, 241))
    assert 0.15 <= len(aside) / 240 <= 0.25
    share_of_yes = [part["label"].count("yes") / len(part) for part in (table, aside)]
    if isinstance(task, Classification):
        assert share_of_yes[1] == pytest.approx(share_of_yes[0], abs=0.07)


def test_other_seeds_put_other_groups_aside():
    task, table = learnt(customers())
    chosen = [
        frozenset(split_off(task, table, 0.2, name="test", seed=seed, group="customer")[1]["text"])
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_text_keeps_the_rows_of_two_groups_together():
    rows = customers()
    rows += [{**rows[0], "customer": f"new {number}"} for number in range(3)]
    rows += [{**rows[-1], "text": "of a new customer"}]
    task, table = learnt(rows)
    groups = row_groups(task, table, "customer")
    assert groups[0] == groups[-1]
    kept, aside = split_off(task, table, 0.2, name="test", group="customer")
    for column in ("text", "customer"):
        assert set(kept[column]).isdisjoint(aside[column])


def test_a_label_of_one_group_stays_with_the_rows_that_are_trained_on():
    rows = customers()
    rows += [{**rows[0], "text": f"rare {n}", "label": "rare", "customer": "x"} for n in range(5)]
    task, table = learnt(rows)
    for seed in range(5):
        kept, aside = split_off(task, table, 0.4, name="test", seed=seed, group="customer")
        assert kept["label"].count("rare") == 5
        assert set(aside["label"]) == {"no", "yes"}


def test_where_all_groups_are_large_the_smallest_is_put_aside():
    groups = [0] * 40 + [1] * 40 + [2] * 30
    assert put_groups_aside(groups, [0] * 110, 0.1, seed=0) == list(range(80, 110))
    assert put_groups_aside([0] * 9, [0] * 9, 0.1, seed=0) == []


def test_parts_of_one_size_get_as_many_rows_and_labels():
    rows = customers()
    task, table = learnt(rows)
    groups = row_groups(task, table, "customer")
    strata = [int(row["label"] == "yes") for row in rows]
    parts = spread_groups(groups, strata, [0.25] * 4, seed=0)
    of_group = {}
    for group, part in zip(groups, parts, strict=True):
        assert of_group.setdefault(group, part) == part
    counts = Counter(zip(parts, strata, strict=True))
    for stratum in (0, 1):
        sizes = [counts[part, stratum] for part in range(4)]
        assert max(sizes) - min(sizes) <= 6


def test_wrong_columns_and_groups_are_refused():
    rows = customers(20)
    task, table = learnt(rows)
    sentence = r"t.csv has no column 'custmer'; it has .*\. Did you mean 'customer'\?"
    with pytest.raises(RowError, match=sentence):
        split_off(task, table, 0.2, name="test", group="custmer")
    task, table = learnt(
        [{**row, "customer": None if n in (3, 7) else "c"} for n, row in enumerate(rows)]
    )
    with pytest.raises(RowError, match=r"nothing in column 'customer' in row 4, 8, expected what"):
        split_off(task, table, 0.2, name="test", group="customer")
    task, table = learnt([{**row, "customer": "c"} for row in rows])
    with pytest.raises(RowError, match=r"has 1 group by column 'customer' and by text, too few"):
        split_off(task, table, 0.2, name="test", group="customer")


def test_a_file_of_test_rows_has_no_group_of_the_training_rows(tmp_path):
    rows = customers()
    task, table = learnt(rows)
    for name, customer in (("other", "someone else"), ("same", rows[0]["customer"])):
        line = f"never seen before,yes,{customer}"
        (tmp_path / f"{name}.csv").write_text(f"text,label,customer\n{line}\n")
    (tmp_path / "unknown.csv").write_text("text,label\nnever seen before,yes\n")

    def split(test):
        files = Files("t.csv", None, str(tmp_path / test), Source(), 0, "customer")
        return split_rows(files, task, table)

    for test in ("other.csv", "unknown.csv"):
        tables = split(test)
        assert set(tables.train["customer"]).isdisjoint(tables.valid["customer"])
    with pytest.raises(RowError, match=r"in column 'customer' are in FILE and in --test"):
        split("same.csv")
