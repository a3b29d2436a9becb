"""Runs that are repeated, over folds or seeds: what is scored, printed, kept and left behind."""

import json
import re
from pathlib import Path

import pytest

from peftcls import cli, recipe
from peftcls.cli import folds
from peftcls.cli.seeds import SeedScores, scratch_folder
from peftcls.metrics import mean_interval

TINY = ("--epochs", "1", "--max-length", "16", "--batch-size", "16")
TEXTS = {
    "ham": ("see you at lunch", "the patient recovered", "stock prices fell"),
    "spam": ("free prize call now", "yes call now", "a free galaxy"),
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(recipe, "RESAMPLES", 20)
    monkeypatch.setattr(folds, "RESAMPLES", 20)


@pytest.fixture
def messages(tmp_path):
    """48 rows of eight customers, with a weight each."""
    lines = ["text,label,customer,weight"]
    for number in range(8):
        for label, texts in TEXTS.items():
            lines += [f"{text} {number},{label},c{number},{1 + number % 2}" for text in texts]
    path = tmp_path / "messages.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def train(file, out, base, *options):
    return cli.main(["train", file, "--out", str(out), "--model", base, *TINY, *options])


def test_folds_score_all_rows_and_the_adapter_is_trained_on_all(messages, bert, tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--folds", "2", "--group", "Customer", "--weight", "weight")
    assert train(messages, out, bert, *options) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "put " not in shown.splitlines()[1]  # no rows are put aside
    assert "48 rows of messages.csv, each answered by a fold that was not trained on it" in shown
    assert "\n48 rows in 2 folds\n" in shown
    assert "\ntraining on all 48 rows, with the settings of the folds\n" in shown
    numbers = json.loads((out / "metrics.json").read_text())
    assert [numbers["rows"][part]["rows"] for part in ("training", "test")] == [48, 48]
    probe = "linear probe of the frozen base"
    systems = {"this run", "TF-IDF + logistic regression", "majority", probe}
    assert set(numbers["systems"]) == systems
    # The majority of a fold that was left out is not known to the others.
    assert numbers["systems"]["majority"]["accuracy"][0] <= 0.5
    assert "(2 folds)" in (out / "README.md").read_text()
    assert json.loads((out / "peftcls.json").read_text())["task"]["weight"] == "weight"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_rows_with_errors_are_left_out_of_folds_and_written(messages, bert, tmp_path, capsys):
    rows = Path(messages)
    rows.write_text(rows.read_text() + "a message,,c1,1\nanother message,ham,c2,heavy\n")
    out, bad = tmp_path / "run", tmp_path / "bad.csv"
    options = ("--folds", "2", "--group", "customer", "--weight", "weight")
    assert train(messages, out, bert, *options) == 1
    assert "row 50 of messages.csv has 'heavy' in column 'weight'" in capsys.readouterr().err
    assert train(messages, out, bert, *options, "--skip-bad-rows", str(bad)) == 0
    shown = capsys.readouterr().out
    assert "left out 2 of 50 rows of messages.csv: rows 49, 50; row 49 has no label" in shown
    assert "\n48 rows in 2 folds\n" in shown
    assert [line.split(",")[1] for line in bad.read_text().splitlines()[1:]] == ["49", "50"]


def test_seeds_are_averaged_and_the_folder_holds_the_first(messages, bert, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(messages, out, bert, "--seeds", "2", "--seed", "3") == 0
    shown = capsys.readouterr().out
    line = re.search(r"^ *accuracy (.*) \((.*) to (.*)\) +([\d.]+) +([\d.]+)$", shown, re.MULTILINE)
    mean, low, high, first, second = map(float, line.groups())
    assert mean == pytest.approx((first + second) / 2, abs=0.1)
    assert low <= mean <= high <= 100
    assert "seed 3 seed 4" in shown
    assert "The folder holds the run of seed 3; no score chose it." in shown
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["run"]["settings"]["seed"] == 3
    assert first == pytest.approx(100 * numbers["systems"]["this run"]["accuracy"][0], abs=0.05)
    assert "- mean accuracy of 2 seeds (95 % t-interval): " in (out / "README.md").read_text()
    assert not (out / ".seeds").exists()


def test_the_interval_of_a_mean_is_students():
    # From the table of the t-distribution: 4.303 with two degrees of freedom.
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert mean - low == pytest.approx(high - mean)
    scores = SeedScores({0: {"accuracy": 0.9, "own": 4.0}, 1: {"accuracy": 1.0, "own": 5.0}})
    assert scores.summary("accuracy") == "95.0 (31.5 to 100.0)"
    assert scores.summary("own") == "4.500 (-1.853 to 10.853)"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--folds", "2", "--test", "messages.csv"), "cannot be used with --test."),
        (("--folds", "2", "--seeds", "2", "--calibrate"), "with --seeds, --calibrate."),
        (("--folds", "2", "--resume"), "cannot be used with --resume."),
        (("--seeds", "2", "--search", "2"), "cannot be used with --search."),
        (("--folds", "9", "--group", "customer"), "--folds 9: the rows have only 8 groups by col"),
        (("--folds", "2", "--group", "custmer"), "Did you mean 'customer'?"),
        (("--weight", "wieght"), "Did you mean 'weight'?"),
        (("--weight", "text"), "--weight text: expected a column of its own"),
        (("--task", "keywords", "--weight", "weight"), "--weight cannot be used with --task keyw"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    options, sentence, messages, bert, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert train(messages, "run", bert, "--text", "text", "--label", "label", *options) != 0
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_folds_writes_nothing(messages, bert, tmp_path, capsys):
    assert train(messages, tmp_path / "run", bert, "--folds", "2", "--dry-run") == 0
    assert "everything is as it was before, and nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_folder_for_runs_that_are_not_kept_goes_away(tmp_path):
    out = tmp_path / "run"

    def interrupted():
        with scratch_folder(out, "folds") as folder:
            (folder / "fold-0").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not out.exists()
    (out / ".folds" / "fold-0").mkdir(parents=True)  # of a command that was killed
    (out / "kept.txt").touch()
    with scratch_folder(out, "folds") as folder:
        assert not folder.exists()
    assert [path.name for path in out.iterdir()] == ["kept.txt"]
