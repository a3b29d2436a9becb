"""How a metric is called: a function, or an object of evaluate or torchmetrics, on columns."""

import copy
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from peftcls.metrics import is_lower_better
from peftcls.tasks.metric_columns import MetricColumns
from peftcls.tasks.named_metrics import NAMED_METRICS, named_metric

Metrics: TypeAlias = Any
"""A metric, the name of one of scikit-learn's, several of these, or metrics by name."""
MetricCall: TypeAlias = Callable[[MetricColumns], Any]

EXPECTED = (
    "expected a function f(predictions, references) that returns a number, an object with a method "
    "compute (of evaluate or torchmetrics), or the name of one of scikit-learn's metrics"
)
MAX_SHOWN_CHARACTERS = 300
READS_PROBABILITIES = re.compile("ROC|AveragePrecision|Curve|Calibration|Ranking")
"""Names in torchmetrics; with labels such a metric would be wrong without a word."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric, and what it must be given.

    Args:
        call: from the columns to a number, or to numbers by name.
        needs_probabilities: whether it reads them.
        higher_is_better: False where lower is better; None where the metric does not say.
    """

    call: MetricCall
    needs_probabilities: bool = False
    higher_is_better: bool | None = None


def named_metrics(metrics: Metrics) -> Iterator[tuple[str, Any]]:
    """Each metric with its name."""
    if metrics is None:
        return
    if isinstance(metrics, Mapping):
        for name, metric in metrics.items():
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w .@+-]*", name):
                raise ValueError(
                    f"metrics has the name {name!r}, expected a text of letters, digits and _."
                )
            yield name, metric
    elif isinstance(metrics, list | tuple):
        for metric in metrics:
            yield _name_of(metric), metric
    elif _is_combination(metrics):
        yield from zip(metrics.evaluation_module_names, metrics.evaluation_modules, strict=True)
    else:
        yield _name_of(metrics), metrics


def _name_of(metric: Any) -> str:
    """The name that a metric has by itself."""
    if isinstance(metric, str):
        return metric
    if _is_combination(metric):
        return "_".join(metric.evaluation_module_names)
    name = getattr(metric, "name", None) or getattr(metric, "__name__", None)
    if not isinstance(name, str):
        name = type(metric).__name__
    if name == "<lambda>":
        raise ValueError("metrics has a function without a name; give it one: metrics={'name': f}.")
    return name


def as_metric(name: str, metric: Any) -> Metric:
    """What the user gives as a metric, with how it is called.

    Raises:
        ValueError: it is no metric.
    """
    if isinstance(metric, str):
        if metric not in NAMED_METRICS:
            raise ValueError(
                f"metrics: there is no metric {metric!r}; expected a function, or some of "
                f"{sorted(NAMED_METRICS)}."
            )
        found = NAMED_METRICS[metric]
        return Metric(
            named_metric(metric),
            needs_probabilities=found.needs_probabilities,
            higher_is_better=not is_lower_better(metric),
        )
    is_better = getattr(metric, "higher_is_better", None)
    if _is_combination(metric):
        calls = [_module_call(module) for module in metric.evaluation_modules]
        needs = any(_reads_scores(module) for module in metric.evaluation_modules)
        named = list(zip(metric.evaluation_module_names, calls, strict=True))
        return Metric(_combined_call(named), needs, is_better)
    if hasattr(metric, "compute") and hasattr(metric, "features"):
        return Metric(_module_call(metric), _reads_scores(metric), is_better)
    if hasattr(metric, "compute") and hasattr(metric, "update"):
        if READS_PROBABILITIES.search(type(metric).__name__):
            raise ValueError(
                f"metrics: {name!r} is {type(metric).__name__}, which reads probabilities and "
                "would be given labels; give a function f(predictions, references, probabilities) "
                "that calls it."
            )
        return Metric(_accumulator_call(metric), False, is_better)
    if callable(metric) and not isinstance(metric, type):
        return Metric(*_function_call(name, metric), is_better)
    raise ValueError(f"metrics: {name!r} is {type(metric).__name__}; {EXPECTED}.")


def _function_call(name: str, function: Callable[..., Any]) -> tuple[MetricCall, bool]:
    """How a function is called, and whether it reads probabilities."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = {}
    reads_probabilities = "probabilities" in parameters
    if "y_true" in parameters:
        if "y_pred" not in parameters:
            raise ValueError(
                f"metrics: {name!r} has no argument y_pred, so what it reads is not known; give "
                "f(predictions, references, probabilities), or its name where peftcls knows it."
            )
        return lambda columns: function(
            y_true=columns.references, y_pred=columns.predictions
        ), False
    needed = [
        parameter
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if parameters and len(needed) - reads_probabilities != 2:
        has_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        if len(needed) > 2 + reads_probabilities or not has_any:
            raise ValueError(
                f"metrics: {name!r} takes {len(needed)} arguments; {EXPECTED}. A third argument "
                "may be called probabilities."
            )
    if reads_probabilities:
        return (
            lambda columns: function(
                columns.predictions, columns.references, probabilities=columns.probabilities
            ),
            True,
        )
    return lambda columns: function(columns.predictions, columns.references), False


def _is_combination(metric: Any) -> bool:
    """Whether something is what `evaluate.combine` returns."""
    return hasattr(metric, "evaluation_modules") and hasattr(metric, "evaluation_module_names")


def _feature_options(module: Any) -> list[Any]:
    """The forms of the columns that a module of evaluate takes, by name each."""
    return list(module.features) if isinstance(module.features, list) else [module.features]


def _reads_scores(module: Any) -> bool:
    return any("prediction_scores" in option for option in _feature_options(module))


def _module_call(module: Any) -> MetricCall:
    """How a module of evaluate is called: with numbers of labels, unless it takes texts."""
    takes_texts = any(
        getattr(kind, "dtype", None) == "string"
        for option in _feature_options(module)
        for kind in option.values()
    )

    def call(columns: MetricColumns) -> Any:
        chosen = columns if takes_texts else columns.in_numbers()
        inputs = {"references": chosen.references.tolist()}
        if _reads_scores(module):
            inputs["prediction_scores"] = columns.prediction_scores().tolist()
        else:
            inputs["predictions"] = chosen.predictions.tolist()
        return module.compute(**inputs)

    return call


def _combined_call(calls: Sequence[tuple[str, MetricCall]]) -> MetricCall:
    """How several modules are called: a name that two of them give has the module's in front."""

    def call(columns: MetricColumns) -> dict[str, Any]:
        found = [(name, one_call(columns)) for name, one_call in calls]
        every = [key for _, values in found for key in values]
        return {
            key if every.count(key) == 1 else f"{name}_{key}": value
            for name, values in found
            for key, value in values.items()
        }

    return call


def _accumulator_call(metric: Any) -> MetricCall:
    """How an object with `update` and `compute` is called; it is copied, so it stays as it is."""

    def call(columns: MetricColumns) -> Any:
        own = copy.deepcopy(metric)
        if hasattr(own, "reset"):
            own.reset()
        numbers = columns.in_numbers()
        own.update(_tensor(numbers.predictions), _tensor(numbers.references))
        return own.compute()

    return call


def _tensor(values: np.ndarray) -> Any:
    """Numbers as a tensor; texts as a list."""
    return values.tolist() if values.dtype == object else torch.from_numpy(values)


# From what a metric returns to scores


def score_values(name: str, metric: Metric, columns: MetricColumns) -> dict[str, float]:
    """The numbers that a metric gives, by the names of their scores.

    Raises:
        ValueError: it fails, or gives no number.
    """
    try:
        value = metric.call(columns)
    # A metric of the user's may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_SHOWN_CHARACTERS].rstrip(".")
        raise ValueError(
            f"the metric {name!r} failed on {len(columns)} rows with {type(error).__name__}: "
            f"{reason}. It was given predictions such as {columns.example()}."
        ) from error
    if not isinstance(value, Mapping):
        number = _as_number(value)
        if number is not None:
            return {name: number}
        shown = repr(value)[:MAX_SHOWN_CHARACTERS]
        raise ValueError(f"the metric {name!r} returned {shown}, expected a number, or numbers.")
    numbers = {key: _as_number(each) for key, each in value.items()}
    # Beside its numbers a metric may return a list or a text, such as the version of its own.
    found = {str(key): number for key, number in numbers.items() if number is not None}
    if not found:
        raise ValueError(f"the metric {name!r} returned {list(value)}, of which none is a number.")
    if len(found) == 1 and len(value) == 1:
        return {name: next(iter(found.values()))}
    return {f"{name}_{key}": number for key, number in found.items()}


def _as_number(value: Any) -> float | None:
    """The number that a value is, or holds as its only one; None where it is none."""
    if isinstance(value, torch.Tensor | np.ndarray) and value.size and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return None
    return float(value)
