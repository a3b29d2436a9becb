"""The search for settings: candidates, rounds, and what is left behind."""

import pytest
import torch

import peftcls
from peftcls.cli import main
from peftcls.training.search import draw_candidates


def searched(bert, folder, rows, *, trials, epochs=4):
    task = peftcls.Classification(max_length=32).learn(rows)
    base, tokenizer = peftcls.load_base(bert, task)
    config = peftcls.TrainConfig(folder, epochs=epochs, batch_size=8, head_init="random")
    return peftcls.search(base, task, tokenizer, config, rows, rows, trials=trials), base


def test_the_default_is_the_first_candidate_and_no_two_are_the_same():
    candidates = draw_candidates(1e-3, 20, seed=3)
    assert (candidates[0].learning_rate, candidates[0].rank) == (1e-3, 16)
    assert candidates[0].targets == "attention"
    assert len(set(candidates)) == len({candidate.name for candidate in candidates}) == 20
    assert all(2e-4 <= candidate.learning_rate <= 5e-3 for candidate in candidates)
    assert draw_candidates(1e-3, 20, seed=3) == candidates
    assert draw_candidates(1e-3, 20, seed=4) != candidates


def test_the_better_half_trains_twice_as_long(bert, text_rows, tmp_path):
    found, base = searched(bert, tmp_path / "out", text_rows, trials=4)
    assert [len(trainings) for trainings in found.rounds] == [4, 2]
    epochs = []
    for trainings in found.rounds:
        steps = {trained.history[-1]["step"] for trained in trainings}
        epochs += [step // 2 for step in steps]
    assert epochs == [1, 2]
    for before, after in zip(found.rounds, found.rounds[1:], strict=False):
        kept = [trained.name for trained in before[: len(after)]]
        assert {trained.name for trained in after} == set(kept)
    assert found.best.name == found.rounds[-1][0].name
    assert not any((tmp_path / "out").glob("search"))
    assert not any(parameter.requires_grad for parameter in base.parameters())
    lines = str(found).splitlines()
    assert [line for line in lines if line.startswith("round")] == ["round 1", "round 2"]
    assert lines[1].startswith("  accuracy")


def test_the_best_is_really_better_than_the_worst(bert, text_rows, tmp_path):
    found, _ = searched(bert, tmp_path, text_rows, trials=4, epochs=8)
    first = [trained.scores["f1_macro"] for trained in found.rounds[0]]
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("trials", [0, 1, 2.0, True, None])
def test_fewer_than_two_candidates_are_refused(bert, text_rows, tmp_path, trials):
    with pytest.raises(ValueError, match="expected a whole number of at least 2"):
        searched(bert, tmp_path, text_rows, trials=trials)


def test_the_command_trains_with_what_was_chosen(bert, tmp_path, capsys, write):
    lines = ["text,label"]
    for n in range(12):
        lines += [f"the patient recovered {n},yes", f"stock prices fell {n},no"]
    rows = write("rows.csv", "\n".join(lines))
    out = tmp_path / "out"
    command = ["train", str(rows), "--model", bert, "--out", str(out), "--epochs", "2"]
    assert main([*command, "--search", "2"]) == 0
    printed = capsys.readouterr().out
    chosen = printed.partition("validation rows: ")[2].splitlines()[0]
    assert chosen.startswith("rate ")
    rank = int(chosen.partition("rank ")[2].partition(",")[0])
    tensors = peftcls.load_predictor(out).model.state_dict()
    ranks = {t.shape[0] for name, t in tensors.items() if "lora_A" in name}
    assert ranks == {rank}
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert main([*command, "--search", "2", "--rank", "4"]) == 1
    assert "it cannot be used with --rank." in capsys.readouterr().err
