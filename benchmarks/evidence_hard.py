"""Harder tables for `evidence.py`: a rare label, wrong labels, and many labels."""

import json
import random
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
RARE_SHARE = 0.05
WRONG_SHARE = 0.1
# Questions of each article to train on, to choose the best step by, and to test on.
OF_ARTICLE = (12, 2, 6)


def read_rare_spam(file: Path, seed: int, sizes: tuple[int, int, int]) -> tuple[Rows, Rows, Rows]:
    """Messages, of which 5 % in each table are spam; the test rows are the same for all seeds.

    Args:
        file: the whole collection: ham or spam, a tab, and the text.
        seed: of the training and the validation rows.
        sizes: of the three tables.
    """
    by_label: dict[str, list[str]] = {"ham": [], "spam": []}
    for line in dict.fromkeys(file.read_text(encoding="utf-8").splitlines()):
        label, _, text = line.partition("\t")
        by_label[label].append(text)
    tables: tuple[Rows, Rows, Rows] = ([], [], [])
    for label, texts in by_label.items():
        share = RARE_SHARE if label == "spam" else 1 - RARE_SHARE
        train, valid, test = (round(size * share) for size in sizes)
        random.Random(0).shuffle(texts)
        rest = texts[test:]
        random.Random(seed).shuffle(rest)
        parts = (rest[:train], rest[train : train + valid], texts[:test])
        for table, part in zip(tables, parts, strict=True):
            table += [{"Text": text, "Label": label} for text in part]
    random.Random(seed).shuffle(tables[0])
    return tables


def with_wrong_labels(rows: Rows, target: str, seed: int) -> Rows:
    """The rows, a tenth of which has the label of another row with another label."""
    draw = random.Random(seed)
    labels = sorted({row[target] for row in rows})
    changed = set(draw.sample(range(len(rows)), round(WRONG_SHARE * len(rows))))
    return [
        {**row, target: draw.choice([label for label in labels if label != row[target]])}
        if number in changed
        else row
        for number, row in enumerate(rows)
    ]


def read_articles(file: Path, seed: int) -> tuple[Rows, Rows, Rows]:
    """Questions, each with the title of its article; the test rows are the same for all seeds."""
    train: Rows = []
    valid: Rows = []
    test: Rows = []
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        questions = [qa["question"] for part in article["paragraphs"] for qa in part["qas"]]
        rows = [{"question": text, "title": article["title"]} for text in questions]
        random.Random(0).shuffle(rows)
        for_train, for_valid, for_test = OF_ARTICLE
        test += rows[:for_test]
        rest = rows[for_test:]
        random.Random(seed).shuffle(rest)
        train += rest[:for_train]
        valid += rest[for_train : for_train + for_valid]
    random.Random(seed).shuffle(train)
    return train, valid, test
