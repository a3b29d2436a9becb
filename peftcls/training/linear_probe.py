"""Linear probing: the best linear layer on the states of a frozen base, as a convex problem."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from peftcls.engine.batch import Batch

# Strengths of the penalty on the weights, for standardised states; the strongest comes first, so
# that each solution is a good start for the next.
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FOLDS = 5
ROW_FOLDS = 2
"""Where rows have many states each, which take longer."""
MAX_CHOOSING_ROWS = 2000
"""The penalty is chosen on at most this many rows; the layer is fitted on all."""
MAX_STEPS = 100
SMALLEST_SHARE = 0.1
"""Of a state's size: a dimension that varies less counts as varying so much. The weights of a base
that hardly tells texts apart, as a random one, would be so large that no adapter could follow."""
SMALLEST_SCALE = 1e-6
MAX_RISES = 2
"""Weaker penalties are not tried when the loss has risen so often in a row."""
WEIGHT = "weight"
"""The target that says how much each row counts, where rows have weights."""
ROW = "row"
"""The target that says which row a state is of, where rows have several; rows count from 0."""

LossSum = Callable[[torch.Tensor, Batch], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a layer reads of each row, and what it should give.

    Args:
        states: of shape (states, width); one of each row, or several if targets has `ROW`.
        targets: what the loss compares the logits with, one value for each state.
        classes: the class of each row, so that every fold has all; None where there are none.
        importance: how much larger than the others a dimension is made, of shape (width,), so that
            the penalty on its weights is weaker; None where all count the same.
    """

    states: torch.Tensor
    targets: Batch
    classes: torch.Tensor | None = None
    importance: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.targets[ROW].max()) + 1 if ROW in self.targets else len(self.states)

    @property
    def weight(self) -> float:
        """What the sum of the losses is divided by: the rows, or the sum of their weights."""
        if WEIGHT not in self.targets:
            return float(self.rows)
        return float(self.targets[WEIGHT].sum()) or 1.0

    def select(self, rows: np.ndarray) -> "Examples":
        """Some of the rows."""
        index = torch.from_numpy(rows)
        classes = None if self.classes is None else self.classes[index]
        if ROW in self.targets:
            index = torch.isin(self.targets[ROW], index)
        targets = {name: values[index] for name, values in self.targets.items()}
        if ROW in targets:
            targets[ROW] = targets[ROW].unique(return_inverse=True)[1]
        return Examples(self.states[index], targets, classes, self.importance)


def classes_of(target: torch.Tensor | None) -> torch.Tensor | None:
    """The class of each row, of its target; None where there are none."""
    if target is None:
        return None
    if target.dim() == 2:
        return target.argmax(1)
    return None if target.is_floating_point() else target


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear layer: weights of shape (outputs, width), biases if any, and the chosen penalty."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    penalty: float

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of shape (rows, outputs) from states of shape (rows, width)."""
        return F.linear(states, self.weight, self.bias)


def fit_probe(
    examples: Examples, loss_sum: LossSum, outputs: int, *, has_bias: bool, seed: int
) -> LinearProbe:
    """Fit a linear layer with a penalty that is chosen by cross-validation.

    The penalty is on weights for standardised states. A layer without biases gets them from states
    whose mean is far from zero: those are scaled, and stay where they are.

    Args:
        examples: of the training rows.
        loss_sum: the sum of the losses of logits, given the targets; convex in the logits.
        outputs: of the layer.
        has_bias: whether the layer has biases.
        seed: of the folds.
    """
    mean = examples.states.mean(0) * float(has_bias)
    deviation = _scale(examples.states)
    if examples.importance is not None:
        deviation = deviation / examples.importance
    standardised = dataclasses.replace(examples, states=(examples.states - mean) / deviation)
    problem = _Problem(standardised, loss_sum, outputs, has_bias)
    penalty = _choose_penalty(problem, seed=seed)
    solution = next(problem.solve([penalty]))
    weight = solution.weight / deviation
    bias = None
    if solution.bias is not None:
        bias = solution.bias - weight @ mean
    return LinearProbe(weight, bias, penalty)


def _scale(states: torch.Tensor) -> torch.Tensor:
    """The deviation of each dimension, of shape (width,), or a share of its size if it is less."""
    deviation = states.std(0, correction=0)
    size = (states**2).mean(0).sqrt()
    return deviation.maximum(SMALLEST_SHARE * size).clamp(min=SMALLEST_SCALE)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A convex problem: the least loss of a linear layer, with a penalty on its weights."""

    examples: Examples
    loss_sum: LossSum
    outputs: int
    has_bias: bool

    def solve(self, penalties: Sequence[float]) -> Iterator[LinearProbe]:
        """A layer for each penalty, by L-BFGS, each from the solution before it."""
        states = self.examples.states
        weight = torch.zeros(self.outputs, states.shape[1], dtype=states.dtype, requires_grad=True)
        bias = torch.zeros(self.outputs, dtype=states.dtype, requires_grad=self.has_bias)
        parameters = [weight, bias] if self.has_bias else [weight]
        weight_sum = self.examples.weight
        for penalty in penalties:
            optimizer = torch.optim.LBFGS(
                parameters,
                max_iter=MAX_STEPS,
                tolerance_grad=1e-5,
                tolerance_change=1e-8,
                line_search_fn="strong_wolfe",
            )

            def objective(
                penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer
            ) -> torch.Tensor:
                optimizer.zero_grad()
                logits = F.linear(states, weight, bias)
                loss = self.loss_sum(logits, self.examples.targets) / weight_sum
                loss = loss + 0.5 * penalty * (weight**2).sum()
                loss.backward()
                return loss

            with torch.enable_grad():
                optimizer.step(objective)
            own_bias = bias.detach().clone() if self.has_bias else None
            yield LinearProbe(weight.detach().clone(), own_bias, penalty)


def _choose_penalty(problem: _Problem, *, seed: int) -> float:
    """The penalty with the least loss on rows that were not fitted on."""
    examples = problem.examples
    order = np.random.default_rng(seed).permutation(examples.rows)[:MAX_CHOOSING_ROWS]
    if examples.classes is not None:
        order = order[examples.classes.numpy()[order].argsort(kind="stable")]
    folds = min(FOLDS if ROW not in examples.targets else ROW_FOLDS, len(order) // 2)
    if folds < 2:
        return PENALTIES[0]
    fold_of = np.arange(len(order)) % folds
    held_out = [examples.select(order[fold_of == fold]) for fold in range(folds)]
    solutions = []
    for fold in range(folds):
        rest = examples.select(order[fold_of != fold])
        solutions.append(dataclasses.replace(problem, examples=rest).solve(PENALTIES))
    losses: list[float] = []
    for each_fold in zip(*solutions, strict=True):
        total = 0.0
        for probe, part in zip(each_fold, held_out, strict=True):
            total += float(problem.loss_sum(probe.logits(part.states), part.targets))
        losses.append(total)
        if len(losses) - 1 - int(np.argmin(losses)) >= MAX_RISES:
            break
    return PENALTIES[int(np.argmin(losses))]
