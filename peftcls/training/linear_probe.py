"""Linear probing: the best linear layer on the states of a frozen base, as a convex problem."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from peftcls.engine.batch import Batch

# Strengths of the penalty on the weights, for standardised states; the strongest comes first, so
# that each solution is a good start for the next.
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FOLDS = 5
MAX_CHOOSING_ROWS = 2000
"""The penalty is chosen on at most this many rows; the layer is fitted on all."""
MAX_STEPS = 100
SMALLEST_SHARE = 0.1
"""Of a state's size: a dimension that varies less counts as varying so much. The weights of a base
that hardly tells texts apart, as a random one, would be so large that no adapter could follow."""
SMALLEST_SCALE = 1e-6

LossSum = Callable[[torch.Tensor, Batch], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a layer reads of each row, and what it should give.

    Args:
        states: of shape (rows, width), in float64.
        targets: what the loss compares the logits with, a row each.
        classes: the class of each row, so that every fold has all; None where there are none.
    """

    states: torch.Tensor
    targets: Batch
    classes: torch.Tensor | None = None

    def select(self, rows: np.ndarray) -> "Examples":
        """Some of the rows."""
        index = torch.from_numpy(rows)
        targets = {name: values[index] for name, values in self.targets.items()}
        classes = None if self.classes is None else self.classes[index]
        return Examples(self.states[index], targets, classes)


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
    standardised = dataclasses.replace(examples, states=(examples.states - mean) / deviation)
    problem = _Problem(standardised, loss_sum, outputs, has_bias)
    penalty = _choose_penalty(problem, seed=seed)
    solution = problem.solve([penalty])[-1]
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

    def solve(self, penalties: Sequence[float]) -> list[LinearProbe]:
        """A layer for each penalty, by L-BFGS, each from the solution before it."""
        rows, width = self.examples.states.shape
        weight = torch.zeros(self.outputs, width, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(self.outputs, dtype=torch.float64, requires_grad=self.has_bias)
        parameters = [weight, bias] if self.has_bias else [weight]
        solutions = []
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
                logits = F.linear(self.examples.states, weight, bias)
                loss = self.loss_sum(logits, self.examples.targets) / rows
                loss = loss + 0.5 * penalty * (weight**2).sum()
                loss.backward()
                return loss

            with torch.enable_grad():
                optimizer.step(objective)
            own_bias = bias.detach().clone() if self.has_bias else None
            solutions.append(LinearProbe(weight.detach().clone(), own_bias, penalty))
        return solutions


def _choose_penalty(problem: _Problem, *, seed: int) -> float:
    """The penalty with the least loss on rows that were not fitted on."""
    examples = problem.examples
    order = np.random.default_rng(seed).permutation(len(examples.states))[:MAX_CHOOSING_ROWS]
    if examples.classes is not None:
        order = order[examples.classes.numpy()[order].argsort(kind="stable")]
    folds = min(FOLDS, len(order) // 2)
    if folds < 2:
        return PENALTIES[0]
    losses = np.zeros(len(PENALTIES))
    fold_of = np.arange(len(order)) % folds
    for fold in range(folds):
        held_out = examples.select(order[fold_of == fold])
        rest = dataclasses.replace(problem, examples=examples.select(order[fold_of != fold]))
        for number, solution in enumerate(rest.solve(PENALTIES)):
            logits = solution.logits(held_out.states)
            losses[number] += float(problem.loss_sum(logits, held_out.targets))
    return PENALTIES[int(losses.argmin())]
