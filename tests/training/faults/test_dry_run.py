"""The dry run: two steps on the longest rows, and everything as it was."""

import pytest
import torch
from small_runs import build, weights

import peftcls
from peftcls.cli import main
from peftcls.training import dry_run
from peftcls.training.dry_run import DryRun


def test_a_dry_run_says_what_a_run_takes_and_leaves_no_trace(bert, tmp_path, text_rows):
    build(bert, tmp_path / "plain", text_rows, dropout=0.3).fit(text_rows)
    trainer = build(bert, tmp_path / "out", text_rows, dropout=0.3)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    generator = torch.get_rng_state()
    modes = [module.training for module in trainer.model.modules()]
    found = trainer.dry_run(text_rows)
    assert found.seconds > 0
    assert found.total_seconds > found.seconds
    assert found.peak_bytes > 1 << 20
    assert (found.rows, found.steps) == (6, 6)
    assert set(found.moved) == set(before)
    assert not found.still
    assert not found.without_gradient
    assert "two steps on the 6 rows that take the most memory at once: " in str(found)
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in trainer.parameters.items()
    )
    assert not trainer.optimizer.state
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in trainer.model.modules()] == modes
    assert not (tmp_path / "out").exists()
    trainer.fit(text_rows)
    expected, after = weights(tmp_path / "plain"), weights(tmp_path / "out")
    assert all(torch.equal(expected[name], after[name]) for name in expected)


def test_a_dry_run_names_what_gets_no_gradient(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path, text_rows)
    name = next(name for name in trainer.parameters if "lora_A" in name)
    trainer.parameters[name].register_hook(torch.zeros_like)
    found = trainer.dry_run(text_rows)
    assert found.without_gradient == (name,)
    assert f"had no gradient: {name}" in str(found)


def test_a_dry_run_of_adalora_leaves_its_ranks_alone(bert, tmp_path, text_rows):
    task = peftcls.Classification(max_length=64).learn(peftcls.data.reading.as_dataset(text_rows))
    out = []
    for has_dry_run in (False, True):
        model, tokenizer = peftcls.load_base(bert, task)
        model = peftcls.attach_lora(model, task, rank=2, method="adalora")
        config = peftcls.TrainConfig(
            tmp_path / str(has_dry_run), epochs=2, batch_size=4, learning_rate=1e-2
        )
        trainer = peftcls.Trainer(model, task, tokenizer, config)
        if has_dry_run:
            trainer.dry_run(text_rows)
        trainer.fit(text_rows)
        out.append(weights(tmp_path / str(has_dry_run)))
    assert all(torch.equal(out[0][name], out[1][name]) for name in out[0])


def test_the_command_makes_a_dry_run_and_writes_nothing(bert, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    lines = [
        f"{text} {n},{label}"
        for n in range(10)
        for text, label in (("the patient recovered", "yes"), ("stock prices fell", "no"))
    ]
    table.write_text("\n".join(["text,label", *lines]) + "\n")
    assert (
        main(
            [
                "train",
                str(table),
                "--out",
                str(tmp_path / "out"),
                "--model",
                bert,
                "--max-length",
                "32",
                "--dry-run",
            ]
        )
        == 0
    )
    assert "everything is as it was before, and nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_trained_on_are_refused_by_a_dry_run_too(bert, tmp_path, text_rows):
    with pytest.raises(peftcls.RowError, match="row 1 of train_rows has no column 'label'"):
        build(bert, tmp_path, text_rows).dry_run([{"text": "a"}])


def test_the_former_names_are_deprecated_and_still_work(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path, text_rows)
    with pytest.warns(
        DeprecationWarning, match=r"^Trainer\.rehearse is now called Trainer\.dry_run"
    ):
        found = trainer.rehearse(text_rows)
    assert isinstance(found, DryRun)
    with pytest.warns(DeprecationWarning, match="^Rehearsal is now called DryRun"):
        assert dry_run.Rehearsal is DryRun
