"""Text classification and regression with a trained adapter, as estimators of scikit-learn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from peftcls.argument_names import names_arguments
from peftcls.engine.model_state import Pooling, Quantize
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_methods import Method
from peftcls.sklearn.inputs import Texts, check_same_columns, read_texts
from peftcls.sklearn.targets import (
    check_weighted_labels,
    read_labels,
    read_numbers,
    read_weights,
)
from peftcls.sklearn.trained import Settings, TrainedAdapter, train_adapter
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.regression import Regression
from peftcls.tasks.text_encoding import LongText

DEFAULT_BASE = "minilm"
LABEL = "label"
NUMBER = "score"
WEIGHT = "weight"
ADAPTER_SETTINGS = ("rank", "targets", "method")
TRAINING_SETTINGS = ("epochs", "batch_size", "learning_rate")
TEXT_SETTINGS = ("max_length", "long_text", "pooling")
SMALLEST_PROBABILITY = 1e-300
"""So that the logarithm of a probability is finite."""
Targets = Literal["attention", "all-linear"] | Sequence[str]


@names_arguments
class TextClassifier(ClassifierMixin, BaseEstimator):
    """Labels texts, or pairs of texts, with an adapter for a pretrained transformer.

    An estimator of scikit-learn: it works in pipelines, `cross_val_score` and `GridSearchCV`. X is
    a list, an array or a column of texts, or a table with two columns for pairs. y has one label
    for each row, of any type, or is a table of 0 and 1 with a column for each label. All rows are
    trained on, and the last step is kept.

    A pickle holds the adapter and the tokenizer, and nothing of the base.

    Args:
        base: as of `load_base`: "minilm", "demo", a local folder, or a name on the hub. If the base
            has moved since `fit`, `set_params(base=...)` says where it is.
        rank: as of `attach_lora`. None stands for the package's default, here and below.
        targets: as of `attach_lora`.
        method: as of `attach_lora`.
        epochs: as of `TrainConfig`; the default depends on the number of rows, as for the two
            below.
        batch_size: as of `TrainConfig`.
        learning_rate: as of `TrainConfig`.
        max_length: as of `Classification`, and so are the next three.
        long_text: "truncate" or "windows".
        pooling: what the head reads.
        class_weight: "balanced", or a weight for each label.
        quantize: "8bit" or "4bit", as of `load_base`.
        output_dir: where the adapter folder is written, beside being kept in memory. It is the same
            folder for every clone, so leave it out in a search.
        seed: of new weights, of the order of the rows and of dropout.
        verbose: whether progress bars are shown.

    Attributes:
        classes_: the labels in order, in the type that they have in y; with several labels a row,
            the numbers of the columns.
        adapter_: the trained adapter.
        history_: the log of the training, as `Trainer.history`.
        feature_names_in_: the columns of X, where it was a data frame.
    """

    def __init__(
        self,
        base: str | Path = DEFAULT_BASE,
        *,
        rank: int | None = None,
        targets: Targets | None = None,
        method: Method | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        max_length: int | None = None,
        long_text: LongText | None = None,
        pooling: Pooling | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        quantize: Quantize | None = None,
        output_dir: str | Path | None = None,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.base = base
        self.rank = rank
        self.targets = targets
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.long_text = long_text
        self.pooling = pooling
        self.class_weight = class_weight
        self.quantize = quantize
        self.output_dir = output_dir
        self.seed = seed
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train an adapter on texts and their labels.

        Args:
            X: texts, or pairs of texts.
            y: one label for each, or a table of 0 and 1 of shape (rows, labels).
            sample_weight: how much each row counts, a number of at least 0; multiplied by
                `class_weight`. Equal weights are as none.

        Raises:
            ValueError: X holds no texts, y no labels, or a weight or a setting is wrong.
        """
        texts = read_texts(X)
        labels = read_labels(y)
        check_consistent_length(texts.cells, labels.cells)
        weights = read_weights(sample_weight, len(texts.cells))
        check_weighted_labels(labels, weights)
        columns = texts.columns_beside(LABEL, WEIGHT)
        task = Classification(
            text=_text_argument(columns),
            label=LABEL,
            labels=labels.names,
            multi_label=labels.several,
            class_weight=self.class_weight,
            weight=None if weights is None else WEIGHT,
            **_given(self, TEXT_SETTINGS),
        )
        _fit(self, task, texts, {LABEL: labels.cells, WEIGHT: weights})
        self.classes_ = labels.classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The label of each text, of shape (rows,); with several labels, 0 and 1 for each of them.

        Raises:
            ValueError: X holds other texts than the X that was fitted.
        """
        answers = _answers(self, X)
        names = list(self.predictor_.label_names)
        if self.predictor_.task.multi_label:
            chosen = [[int(name in (answer.labels or ())) for name in names] for answer in answers]
            return np.array(chosen)
        return self.classes_[[names.index(str(answer.label)) for answer in answers]]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each label, of shape (rows, labels), in the order of `classes_`.

        Raises:
            ValueError: as `predict`.
        """
        answers = _answers(self, X)
        names = self.predictor_.label_names
        probabilities = [answer.probabilities or {} for answer in answers]
        return np.array([[by_name[name] for name in names] for by_name in probabilities])

    def decision_function(self, X: Any) -> np.ndarray:
        """How sure each label is, without bounds: what ranks rows as `predict_proba` does.

        Returns:
            With two labels the log-odds of the second, of shape (rows,). With more, the logarithm
            of each probability, of shape (rows, labels). With several labels a row, the log-odds of
            each, of the same shape.

        Raises:
            ValueError: as `predict`.
        """
        probabilities = self.predict_proba(X)
        logs = np.log(probabilities.clip(min=SMALLEST_PROBABILITY))
        if self.predictor_.task.multi_label:
            return logs - np.log((1 - probabilities).clip(min=SMALLEST_PROBABILITY))
        if len(self.classes_) == 2:
            return logs[:, 1] - logs[:, 0]
        return logs

    @property
    def predictor_(self) -> Predictor:
        """The predictor of the trained adapter."""
        return _predictor(self)

    def save(self, directory: str | Path) -> Path:
        """Write the adapter folder, which `load_predictor` and the command read."""
        return _save(self, directory)

    def __sklearn_tags__(self) -> Any:
        tags = _text_tags(super().__sklearn_tags__())
        tags.classifier_tags.multi_label = True
        return tags


@names_arguments
class TextRegressor(RegressorMixin, BaseEstimator):
    """Predicts a number for texts, or pairs of texts, with an adapter for a pretrained transformer.

    As `TextClassifier`, except that y holds numbers.

    Args:
        base: as of `TextClassifier`, and so are all others.
        rank: of the adapter.
        targets: of the adapter.
        method: of the adapter.
        epochs: passes over the rows.
        batch_size: rows of a step.
        learning_rate: the peak.
        max_length: tokens of one sequence.
        long_text: "truncate" or "windows".
        pooling: what the head reads.
        quantize: "8bit" or "4bit".
        output_dir: where the adapter folder is written.
        seed: of new weights, of the order of the rows and of dropout.
        verbose: whether progress bars are shown.

    Attributes:
        adapter_: the trained adapter.
        history_: the log of the training, as `Trainer.history`.
        feature_names_in_: the columns of X, where it was a data frame.
    """

    def __init__(
        self,
        base: str | Path = DEFAULT_BASE,
        *,
        rank: int | None = None,
        targets: Targets | None = None,
        method: Method | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        max_length: int | None = None,
        long_text: LongText | None = None,
        pooling: Pooling | None = None,
        quantize: Quantize | None = None,
        output_dir: str | Path | None = None,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.base = base
        self.rank = rank
        self.targets = targets
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.long_text = long_text
        self.pooling = pooling
        self.quantize = quantize
        self.output_dir = output_dir
        self.seed = seed
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train an adapter on texts and their numbers.

        Args:
            X: texts, or pairs of texts.
            y: one number for each.
            sample_weight: how much each row counts, as of `TextClassifier`.

        Raises:
            ValueError: X holds no texts, y no numbers, or a weight or a setting is wrong.
        """
        texts = read_texts(X)
        numbers = read_numbers(y)
        check_consistent_length(texts.cells, numbers)
        weights = read_weights(sample_weight, len(texts.cells))
        columns = texts.columns_beside(NUMBER, WEIGHT)
        task = Regression(
            text=_text_argument(columns),
            target=NUMBER,
            weight=None if weights is None else WEIGHT,
            **_given(self, TEXT_SETTINGS),
        )
        _fit(self, task, texts, {NUMBER: numbers, WEIGHT: weights})
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The number of each text, of shape (rows,).

        Raises:
            ValueError: X holds other texts than the X that was fitted.
        """
        return np.array([answer.value for answer in _answers(self, X)])

    @property
    def predictor_(self) -> Predictor:
        """The predictor of the trained adapter."""
        return _predictor(self)

    def save(self, directory: str | Path) -> Path:
        """Write the adapter folder, which `load_predictor` and the command read."""
        return _save(self, directory)

    def __sklearn_tags__(self) -> Any:
        return _text_tags(super().__sklearn_tags__())


# What both estimators do


def _text_argument(columns: Sequence[str]) -> str | tuple[str, str]:
    if len(columns) == 1:
        return columns[0]
    first, second = columns
    return first, second


def _given(estimator: BaseEstimator, names: Sequence[str]) -> dict[str, Any]:
    """The settings that are not None; numbers of numpy, as from a grid, become those of Python."""
    given = {}
    for name in names:
        value = getattr(estimator, name)
        if value is not None:
            given[name] = value.item() if isinstance(value, np.generic) else value
    return given


def _fit(
    estimator: Any, task: Task, texts: Texts, columns: Mapping[str, Sequence[Any] | None]
) -> None:
    """Train an adapter and keep it in the estimator. Raises ValueError where X has one row.

    Args:
        estimator: that is fitted.
        task: what the rows mean.
        texts: of X.
        columns: the target and the weights of the rows, by name; None where there are none.
    """
    rows = texts.rows(task.text_columns())
    if len(rows) == 1:
        raise ValueError("X has one sample (n_samples=1), expected two rows or more to train on.")
    for name, values in columns.items():
        if values is not None:
            for row, value in zip(rows, values, strict=True):
                row[name] = value
    settings = Settings(
        base=estimator.base,
        quantize=estimator.quantize,
        adapter=_given(estimator, ADAPTER_SETTINGS),
        training=_given(estimator, TRAINING_SETTINGS),
        seed=_given(estimator, ["seed"]).get("seed", 0),
        output_dir=estimator.output_dir,
        verbose=estimator.verbose,
    )
    adapter = train_adapter(task, rows, settings)
    estimator.adapter_ = adapter
    estimator.history_ = adapter.history
    if texts.is_frame and texts.names is not None:
        estimator.feature_names_in_ = np.array(texts.names, dtype=object)
    elif hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_


def _predictor(estimator: Any) -> Predictor:
    check_is_fitted(estimator)
    adapter: TrainedAdapter = estimator.adapter_
    return adapter.predictor(estimator.base)


def _answers(estimator: Any, X: Any) -> list[Answer]:
    """Answer X. Raises ValueError where it has other columns than the X that was fitted."""
    predictor = _predictor(estimator)
    texts = read_texts(X)
    columns = predictor.task.text_columns()
    names = getattr(estimator, "feature_names_in_", None)
    check_same_columns(texts, names, len(columns))
    return predictor.predict(texts.rows(columns))


def _save(estimator: Any, directory: str | Path) -> Path:
    check_is_fitted(estimator)
    adapter: TrainedAdapter = estimator.adapter_
    return adapter.save(directory)


def _text_tags(tags: Any) -> Any:
    """The tags of an estimator whose X holds texts: one of each row, or two."""
    tags.input_tags.string = True
    tags.input_tags.one_d_array = True
    tags.input_tags.two_d_array = False
    return tags
