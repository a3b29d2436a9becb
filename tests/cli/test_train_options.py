"""The options of training: each reaches the setting that it is called after."""

import json
import shutil

import pytest

from peftcls import cli, load_predictor, recipe
from peftcls.cli.column_guessing import Columns
from peftcls.cli.task_building import task_for
from peftcls.cli.train_setup import parse_layers

TINY = ("--epochs", "1", "--max-length", "16", "--batch-size", "16")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(recipe, "RESAMPLES", 20)


def rows_of(path, words, rows=20):
    lines = ["text,label"]
    lines += [f"{text} number {n},{label}" for n in range(rows) for label, text in words.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def messages(tmp_path):
    words = {"ham": "see you at lunch", "spam": "free prize call now"}
    return rows_of(tmp_path / "messages.csv", words)


def test_the_settings_of_task_adapter_and_training_reach_the_run(messages, bert, tmp_path, capsys):
    out = tmp_path / "run"
    options = {
        "--dropout": "0.1",
        "--alpha": "5",
        "--layers": "-1",
        "--sampling": "balanced",
        "--label-smoothing": "0.1",
        "--long-text": "windows",
        "--weight-decay": "0.2",
        "--warmup": "0.5",
        "--patience": "1",
        "--micro-batch-tokens": "64",
        "--monitor": "accuracy",
        "--dtype": "float32",
    }
    given = [word for option in options.items() for word in option]
    command = ["train", messages, "--out", str(out), "--model", bert, *TINY, *given]
    code = cli.main([*command, "--gradient-checkpointing", "--calibrate"])
    assert code == 0, capsys.readouterr().err
    settings = json.loads((out / "metrics.json").read_text())["run"]["settings"]
    for name in ("weight_decay", "warmup", "patience", "micro_batch_tokens", "monitor"):
        assert str(settings[name]) in (options[f"--{name.replace('_', '-')}"], "1")
    assert settings["gradient_checkpointing"] is True
    adapter = json.loads((out / "adapter_config.json").read_text())
    assert (adapter["lora_alpha"], adapter["lora_dropout"]) == (5, 0.1)
    assert all(".layer.1." in name for name in adapter["target_modules"])
    predictor = load_predictor(out)
    task = predictor.task
    assert (task.sampling, task.label_smoothing, task.long_text) == ("balanced", 0.1, "windows")
    assert task.decisions.temperature != 1
    assert json.loads((out / "peftcls.json").read_text())["base"]["dtype"] == "float32"
    capsys.readouterr()
    assert cli.main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "\nsaved      20" in shown
    assert "\ntest       6 rows of messages.csv, test rows" in shown
    assert "\nscore      f1_macro " in shown
    assert cli.main(["check", messages]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "labels: 'ham' 20, 'spam' 20"
    assert lines[2] == "words of a row: median 6, 95 % of the rows at most 6, longest 6"


def test_an_option_that_the_task_does_not_have_is_refused():
    columns = Columns(kind="regression", text=("x",), label="y")
    with pytest.raises(ValueError, match=r"^--label-smoothing cannot be used with --task regr"):
        task_for(columns, {"label_smoothing": 0.1})
    with pytest.raises(ValueError, match=r"^--layers 'top': expected numbers of layers"):
        parse_layers("top")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--num-epochs", "--epochs"),
        ("--num_train_epochs", "--epochs"),
        ("--per-device-train-batch-size", "--batch-size"),
        ("--lora-alpha", "--alpha"),
    ],
)
def test_an_option_with_the_name_of_another_library_is_named(typed, meant, messages, capsys):
    assert cli.main(["train", messages, "--out", "run", typed, "3"]) == cli.USAGE
    sentence = f"There is no option {typed}; it is called {meant} here"
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--epoch", "No such option '--epoch'. Did you mean '--epochs'?"),
        ("--cpu", "There is no option --cpu; it is --device cpu here."),
        ("--max-steps", "it is called --epochs here; the length of a run is set in"),
        (
            "--gradient-accumulation-steps",
            "There is no option --gradient-accumulation-steps: the batch size is of a whole step",
        ),
    ],
)
def test_an_option_that_differs_is_explained(typed, sentence, messages, capsys):
    assert cli.main(["train", messages, "--out", "run", typed, "3"]) == cli.USAGE
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_help_has_its_options_in_groups(capsys):
    assert cli.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Data:", "Model and adapter:", "Training:", "Output:", "Other options:"]
    assert "--learning-rate" in shown.partition("Training:")[2].partition("Output:")[0]


def test_an_adapter_is_trained_on_from_the_command(messages, bert, tmp_path, capsys):
    first, second = str(tmp_path / "first"), str(tmp_path / "second run")
    assert cli.main(["train", messages, "--out", first, "--model", bert, *TINY]) == 0
    # The old rows have the other labels.
    new = rows_of(tmp_path / "new.csv", {"news": "stock prices fell"})
    command = ["learn-on", first, new, "--replay", messages, "--epochs", "1"]
    capsys.readouterr()
    assert cli.main([*command, "--out", second]) == 0
    shown = capsys.readouterr().out
    assert "new test rows" in shown
    assert "rows of --replay are trained on again. Too few others are left, so all" in shown
    assert f"next: peftcls predict '{second}' FILE" in shown
    assert load_predictor(second).label_names == ("ham", "spam", "news")
    assert json.loads((tmp_path / "second run" / "peftcls.json").read_text())["lineage"]
    assert cli.main([*command, "--out", first, "--overwrite"]) == 1
    assert "holds the folder that this run continues from" in capsys.readouterr().err


def test_old_rows_that_are_not_trained_on_again_show_what_was_forgotten(
    messages, bert, tmp_path, capsys
):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert cli.main(["train", messages, "--out", first, "--model", bert, *TINY]) == 0
    new = rows_of(tmp_path / "new.csv", {"news": "stock prices fell"}, 12)
    rows = [f"{text} {n},{kind}" for n in range(40) for kind, text in (("0", "x"), ("1", "y"))]
    # The file of old rows has other names than the folder; the new one has not.
    old = tmp_path / "old.csv"
    old.write_text("\n".join(["body,kind", *rows]), encoding="utf-8")
    command = ["learn-on", first, new, "--replay", str(old), "--epochs", "1", "--out", second]
    names = ["--map", "text=body", "--map", "label=kind", "--label-names", "0=ham,1=spam"]
    capsys.readouterr()
    assert cli.main([*command, *names]) == 0
    assert "4 of the 80 rows of --replay are trained on again; 76 others show what" in (
        capsys.readouterr().out
    )
    assert load_predictor(second).label_names == ("ham", "spam", "news")


def test_the_start_of_a_continued_adapter_is_kept_and_a_finished_run_is_not_replaced(
    messages, bert, tmp_path, capsys
):
    first, second = str(tmp_path / "first"), tmp_path / "second"
    command = ["train", messages, "--out", first, "--model", bert, *TINY]
    assert cli.main(command) == 0
    wrong = rows_of(tmp_path / "wrong.csv", {"ham": "free prize call", "spam": "see you at"}, 6)
    learning = ["learn-on", first, wrong, "--valid", messages, "--test", messages, "--epochs", "1"]
    learning += ["--out", str(second), "--monitor", "loss", "--learning-rate", "0.01"]
    capsys.readouterr()
    assert cli.main(learning) == 0
    said = capsys.readouterr()
    assert "than the adapter that this run was continued from, first: its weights" in (
        said.out + said.err
    )
    assert "linear probe that it began with" not in said.out
    assert cli.main(["show", str(second)]) == 0
    assert "\nkept       the adapter that the training continued from: " in capsys.readouterr().out

    before = {path: path.read_bytes() for path in second.iterdir() if path.is_file()}
    for repeated in ([*learning, "--resume"], [*command, "--out", str(second), "--resume"]):
        assert cli.main(repeated) == 1
        assert capsys.readouterr().err == (
            f"{second} holds a finished adapter and no checkpoint: there is nothing to resume. "
            "Choose another --out, or replace it with --overwrite.\n"
        )
    for name in ("metrics.json", "report.html"):
        (second / name).unlink()  # as where the command was killed before its report
        del before[second / name]
    shutil.rmtree(second / "figures")
    assert cli.main([*learning, "--resume"]) == 1
    assert "It has no report: the run was ended just before that" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in second.iterdir() if path.is_file()} == before
    assert cli.main([*learning, "--resume", "--overwrite"]) == 0


def test_a_device_that_is_not_there_is_refused(messages, bert, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert cli.main(["train", messages, "--out", out, "--model", bert, *TINY]) == 0
    capsys.readouterr()
    for device in ("foo", "cuda:99"):
        assert cli.main(["evaluate", out, messages, "--device", device]) == 1
        assert f"--device {device}: there is no such device here" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^device='foo': there is no such device"):
        load_predictor(out, device="foo")
    assert cli.main(["evaluate", out, messages, "--device", "cpu"]) == 0
