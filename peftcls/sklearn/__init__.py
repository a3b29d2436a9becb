"""Estimators for scikit-learn: a text classifier and a text regressor with a trained adapter."""

from peftcls.sklearn.estimators import TextClassifier, TextRegressor

__all__ = ["TextClassifier", "TextRegressor"]
