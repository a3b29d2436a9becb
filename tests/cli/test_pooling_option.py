"""`--pooling`: what a head reads of a text."""

import pytest

from peftcls.cli.column_guessing import Columns
from peftcls.cli.task_building import WITH_HEAD, task_for


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_a_head_gets_it(kind):
    text = ("a", "b") if kind == "pair" else ("a",)
    task = task_for(Columns(kind=kind, text=text, label="y"), {"pooling": "mean"})
    assert task.pooling == "mean"


@pytest.mark.parametrize("kind", ["qa", "instruction", "keywords"])
def test_other_tasks_refuse_it(kind):
    columns = Columns(kind=kind, text=("question", "context"), label="y")
    with pytest.raises(ValueError, match=f"--pooling cannot be used with --task {kind}"):
        task_for(columns, {"pooling": "mean"})
