"""What every task must do: one call checks its contract (as scikit-learn's check_estimator)."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import peftcls
from peftcls import Answer, RowError, Task
from peftcls.data.reading import Row, as_dataset
from peftcls.metrics import LOWER_IS_BETTER
from peftcls.models.trainable import trained_parameters
from peftcls.tasks.encoding import encode_table

ALIKE = {"rel": 1e-6, "abs": 1e-9}
SIDES = ("right", "left")


@dataclasses.dataclass(frozen=True)
class Case:
    """A task that has learnt its rows; its float64 model, trained parameters not as drawn."""

    task: Task
    rows: list[Row]
    model: torch.nn.Module
    tokenizer: Any

    def features(self, *, with_target: bool = True) -> list[dict]:
        return [self.task.encode(row, self.tokenizer, with_target=with_target) for row in self.rows]

    def loss(self, features: Sequence[dict], widen: int = 0) -> float:
        with torch.inference_mode():
            return float(
                self.task.loss_sum(
                    self.model, self.widened(self.task.collate(features, self.tokenizer), widen)
                )
            )

    def widened(self, batch: dict[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
        """The batch with more padding on the tokenizer's side than its longest row needs."""
        sides = (0, tokens) if self.tokenizer.padding_side == "right" else (tokens, 0)
        shape, fill = batch["input_ids"].shape, {"input_ids": self.tokenizer.pad_token_id}
        return {
            name: torch.nn.functional.pad(tensor, sides, value=fill.get(name, 0))
            if tensor.shape == shape and not tensor.is_floating_point()
            else tensor
            for name, tensor in batch.items()
        }

    def answers(self, rows: Sequence[Row], batch_size: int | None = None) -> list[Answer]:
        return peftcls.Predictor(self.model, self.task, self.tokenizer).predict(
            list(rows), batch_size=batch_size
        )


def check_task(
    task: Task,
    base: str,
    rows: list[Row],
    *,
    right: Callable[[Row], Answer],
    sides: Sequence[str] = SIDES,
) -> None:
    """Check a task against the contract of `Task`.

    Args:
        task: as a user writes it, before `learn`.
        base: a folder with a tiny base model.
        rows: with targets, at least four, of unequal lengths; the texts differ.
        right: the answer that is wholly right for a row.
        sides: of the padding, those that the tokenizer allows.
    """
    learnt = check_learning(task, rows)
    check_json(learnt)
    check_columns(learnt, rows)
    model, tokenizer = peftcls.load_base(base, learnt)
    model = peftcls.attach_lora(model, learnt, rank=4, targets="all-linear").double()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64) * 0.1)
    case = Case(learnt, rows, model.eval(), tokenizer)
    check_bare_texts(case)
    check_features(case)
    for side in sides:
        tokenizer.padding_side = side
        check_batches(case)
    check_losses(case, sides)
    check_answers(case, sides)
    check_scores(case, right)
    check_gradients(case)


def check_learning(task: Task, rows: list[Row]) -> Task:
    """Learning again, or from the same rows in another order, changes nothing."""
    learnt = task.learn(rows)
    assert type(learnt) is type(task)
    assert learnt.learn(rows) == learnt
    again = task.learn(as_dataset(rows[::-1]))
    for field in dataclasses.fields(learnt):  # a mean may differ by rounding
        found, expected = getattr(again, field.name), getattr(learnt, field.name)
        assert found == (
            pytest.approx(expected, rel=1e-12) if isinstance(expected, float | dict) else expected
        ), field.name
    return learnt


def check_json(task: Task) -> None:
    """A task comes back from its text in the folder as it was."""
    text = json.dumps(task.to_json(), allow_nan=False)
    again = type(task).from_json(json.loads(text))
    assert again == task
    assert json.dumps(again.to_json()) == text
    with pytest.raises(
        ValueError, match=r"has no \['colour'\]; the folder was written by another version"
    ):
        type(task).from_json({**json.loads(text), "colour": "red"})


def check_columns(task: Task, rows: list[Row]) -> None:
    """Every column is asked for by name, and a row without its text or target is named."""
    inputs, every = task.columns(with_target=False), task.columns(with_target=True)
    targets = every[len(inputs) :]
    assert inputs
    assert targets
    assert every == [*inputs, *targets]
    peftcls.check_rows(task, as_dataset(rows), training=True)
    peftcls.check_rows(task, as_dataset(rows).remove_columns(targets), with_target=False)
    for column in every:
        with pytest.raises(RowError, match=rf"^row 1 of rows has no column '{column}'; it has "):
            peftcls.check_rows(task, as_dataset(rows).remove_columns([column]))
    for column in inputs:
        for empty in ("", " \n", None):
            spoilt = [*rows[:1], {**rows[1], column: empty}, *rows[2:]]
            for with_target in (True, False):
                with pytest.raises(
                    RowError, match=rf"^row 2 of rows has no text in column '{column}'.*\.$"
                ):
                    peftcls.check_rows(task, as_dataset(spoilt), with_target=with_target)
    without = as_dataset([*rows[:1], {**rows[1], **dict.fromkeys(targets)}, *rows[2:]])
    peftcls.check_rows(task, without, with_target=False)
    with pytest.raises(RowError, match=rf"^row 2 of rows has .* in column '{targets[0]}'.*\.$"):
        peftcls.check_rows(task, without)


def check_bare_texts(case: Case) -> None:
    """Bare texts become the rows that they are the texts of."""
    columns = case.task.columns(with_target=False)
    wanted = [{column: row[column] for column in columns} for row in case.rows]
    bare = [next(iter(row.values())) if len(row) == 1 else tuple(row.values()) for row in wanted]
    assert case.task.rows_of(bare) == wanted
    with pytest.raises(RowError, match=r"^text 2 of 2 is 7 \(int\), expected a "):
        case.task.rows_of([bare[0], 7])
    assert all(row[column] in case.task.text_of(row) for row in case.rows for column in columns)
    assert all(isinstance(case.task.gold_of(row), tuple) for row in case.rows)


def check_features(case: Case) -> None:
    """A row has one encoding, within its limits, and Arrow gives it back."""
    features = case.features()
    assert (
        features
        == case.features()
        == list(case.task.encode_many(case.rows, case.tokenizer, with_target=True))
    )
    assert case.features(with_target=False) == list(
        case.task.encode_many(case.rows, case.tokenizer, with_target=False)
    )
    assert len({tuple(f["input_ids"]) for f in features}) > 1
    for feature, bare in zip(features, case.features(with_target=False), strict=True):
        assert feature["weight"] > 0
        assert "weight" not in bare
        windows = feature.get("windows", [len(feature["input_ids"])])
        assert sum(windows) == len(feature["input_ids"])
        assert 0 < max(windows) <= case.task.max_length  # type: ignore[attr-defined]
    table = encode_table(case.task, as_dataset(case.rows), case.tokenizer, "base")
    assert [
        {name: table.features[i][name] for name in f} for i, f in enumerate(features)
    ] == features
    assert table.lengths.tolist() == [len(f["input_ids"]) for f in features]
    assert table.weights.tolist() == pytest.approx([f["weight"] for f in features])


def check_batches(case: Case) -> None:
    """Every tensor of a batch has a line for each row, and the mask marks the tokens of each."""
    for with_target in (True, False):
        features = case.features(with_target=with_target)
        batch = case.task.collate(features, case.tokenizer)
        lines = [tokens for f in features for tokens in f.get("windows", [len(f["input_ids"])])]
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(lines), max(lines))
        assert batch["attention_mask"].sum(1).tolist() == lines
        assert batch["input_ids"][batch["attention_mask"].bool()].tolist() == [
            i for f in features for i in f["input_ids"]
        ]
        assert all(len(tensor) in (len(lines), len(features)) for tensor in batch.values())
        ends = batch["attention_mask"][:, 0 if case.tokenizer.padding_side == "right" else -1]
        assert ends.all(), "the padding is not on the tokenizer's side"


def check_losses(case: Case, sides: Sequence[str]) -> None:
    """The loss of a batch is the sum of its rows' losses, however it is padded and ordered."""
    features = case.features()
    case.tokenizer.padding_side = sides[0]
    alone = [case.loss([feature]) for feature in features]
    assert len({round(loss, 6) for loss in alone}) > len(alone) // 2, (
        "the rows make no difference, so nothing was compared"
    )
    assert min(alone) >= 0
    for side in sides:
        case.tokenizer.padding_side = side
        assert [case.loss([feature], widen=5) for feature in features] == pytest.approx(
            alone, **ALIKE
        ), side
        assert case.loss(features) == pytest.approx(sum(alone), **ALIKE), side
        assert case.loss(features[::-1], widen=3) == pytest.approx(sum(alone), **ALIKE), side
        assert case.loss(features[1::2]) == pytest.approx(sum(alone[1::2]), **ALIKE), side
        assert case.loss([features[0]] * 3) == pytest.approx(3 * alone[0], **ALIKE), side


def check_answers(case: Case, sides: Sequence[str]) -> None:
    """An answer depends on its row alone: not on batch mates, order, padding, or the target."""
    case.tokenizer.padding_side = sides[0]
    alone = case.answers(case.rows, batch_size=1)
    inputs = case.task.columns(with_target=False)
    bare = [{column: row[column] for column in inputs} for row in case.rows]
    for side in sides:
        case.tokenizer.padding_side = side
        for found in (
            case.answers(case.rows),
            case.answers(case.rows[::-1])[::-1],
            case.answers(bare, batch_size=3),
        ):
            for one, other in zip(alone, found, strict=True):
                assert same_answer(one, other), (side, one, other)
    told = {json.dumps([a.probabilities, a.value, a.text]) for a in alone}
    assert len(told) > 1, "the rows make no difference, so nothing was compared"


def same_answer(one: Answer, other: Answer) -> bool:
    named = [
        {"value": a.value, "probability": a.probability, "null": a.null_probability}
        for a in (one, other)
    ]
    numbers = [
        (a.probabilities or {}) | {name: n for name, n in own.items() if n is not None}
        for a, own in zip((one, other), named, strict=True)
    ]
    rest = [
        dataclasses.replace(
            a, probabilities=None, value=None, probability=None, null_probability=None, n_best=()
        )
        for a in (one, other)
    ]
    return rest[0] == rest[1] and numbers[0] == pytest.approx(numbers[1], **ALIKE)


def check_scores(case: Case, right: Callable[[Row], Answer]) -> None:
    """Every score has its name, and no answers score better than the right ones."""
    best = case.task.score([right(row) for row in case.rows], case.rows)
    assert case.task.monitor in case.task.score_names
    assert set(case.task.score_names) <= set(best)
    assert best[case.task.monitor] == pytest.approx(1.0)
    shifted = [right(row) for row in case.rows[1:] + case.rows[:1]]
    for answers in (case.answers(case.rows), shifted):
        found = case.task.score(answers, as_dataset(case.rows))
        assert set(case.task.score_names) <= set(found)
        assert found[case.task.monitor] < best[case.task.monitor], (
            "wrong answers score as right ones do"
        )
        for name in case.task.score_names:
            low, high = (best, found) if name in LOWER_IS_BETTER else (found, best)
            assert low[name] <= high[name] + 1e-9, name


def check_gradients(case: Case) -> None:
    """The loss reaches what is trained, with finite gradients."""
    parameters = trained_parameters(case.model)
    case.task.loss_sum(case.model, case.task.collate(case.features(), case.tokenizer)).backward()
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    reached = [name for name, gradient in found.items() if float(gradient.abs().max()) > 0]
    assert any(".lora_A." in name for name in reached)
    assert any(".modules_to_save." in name for name in reached) == case.task.new_head
