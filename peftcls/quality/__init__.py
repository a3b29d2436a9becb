"""Data quality: errors, leaks and oddities in the rows of all splits, found before training."""
