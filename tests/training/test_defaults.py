"""The default settings by kind of work and size of table, and the page that shows them."""

import dataclasses
import re

import pytest
from snippets import DOCS

from peftcls import Classification, ExtractiveQA, Instruction, Regression, TrainConfig
from peftcls.training.defaults import CLOSED_LABELS, FEW_ROWS, HEAD, SPANS, TEXT, defaults_for

KINDS = {
    HEAD: (Classification(labels=("a", "b")), Regression()),
    CLOSED_LABELS: (Instruction(labels=("a", "b")),),
    TEXT: (Instruction(), Instruction(separator=";")),
    SPANS: (ExtractiveQA(),),
}


@pytest.mark.parametrize("defaults", KINDS, ids=["head", "labels", "text", "spans"])
def test_a_kind_of_work_has_its_defaults(defaults):
    for task in KINDS[defaults]:
        assert defaults_for(task) is defaults
        config = TrainConfig.for_task("runs/x", task, rows=100_000)
        assert (config.batch_size, config.learning_rate, config.epochs) == (
            defaults.batch_size,
            defaults.learning_rate,
            defaults.epochs,
        )


@pytest.mark.parametrize(("rows", "epochs"), [(1, 40), (200, 7), (320, 4), (5000, 4)])
def test_a_small_table_is_read_more_often(rows, epochs):
    config = TrainConfig.for_task("runs/x", KINDS[HEAD][0], rows=rows)
    assert config.epochs == epochs


@pytest.mark.parametrize(("rows", "rate"), [(200, 2e-3), (304, 2e-3), (320, 1e-3), (5000, 1e-3)])
def test_a_small_table_has_a_rate_of_its_own(rows, rate):
    assert TrainConfig.for_task("runs/x", KINDS[HEAD][0], rows=rows).learning_rate == rate


def test_what_is_given_is_kept_and_none_is_not_given():
    config = TrainConfig.for_task(
        "runs/x", KINDS[HEAD][0], rows=200, epochs=None, batch_size=4, learning_rate=3e-4, seed=7
    )
    assert (config.batch_size, config.learning_rate, config.seed) == (4, 3e-4, 7)
    assert config.epochs == 4
    assert TrainConfig.for_task("runs/x", KINDS[HEAD][0], rows=42, epochs=2).epochs == 2


@pytest.mark.parametrize("rows", [0, -1, None, 1.5, True, [1, 2]])
def test_rows_must_be_a_number_of_rows(rows):
    with pytest.raises(ValueError, match=r"expected the number of training rows, len\(train\)"):
        TrainConfig.for_task("runs/x", KINDS[HEAD][0], rows=rows)


def test_a_task_must_be_one():
    with pytest.raises(ValueError, match="expected a task"):
        TrainConfig.for_task("runs/x", Classification, rows=3)


def test_the_page_shows_the_same_numbers():
    table = re.findall(
        r"^\| (?!kind|---)[^|]+ \| (\d+) \| ([\d.e-]+) \| (\d+) \| (\d+) \| ([\d.e-]+) \|$",
        (DOCS / "defaults.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    shown = [(int(a), float(b), int(c), int(d), float(e)) for a, b, c, d, e in table]
    assert shown == [
        dataclasses.astuple(kind) for kind in (HEAD, FEW_ROWS, CLOSED_LABELS, TEXT, SPANS)
    ]


def test_the_chosen_settings_can_be_looked_at():
    shown = repr(TrainConfig.for_task("runs/a", Classification(labels=("a", "b")), rows=300))
    assert shown == "TrainConfig(output_dir='runs/a', epochs=5, learning_rate=0.002)"
