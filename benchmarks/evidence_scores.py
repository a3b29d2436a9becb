"""Scores of answers, and of each row, so that systems can be compared row by row."""

from typing import Any

import numpy as np
from evidence_data import Rows, Work
from scipy import stats
from sklearn.metrics import f1_score

from peftcls import metrics


def row_scores(work: Work, answers: list[Any], rows: Rows) -> dict[str, Any]:
    """The score that systems are compared by, others, and the score of each row if it has one.

    All are times 100.
    """
    gold = [row[work.target] for row in rows]
    match work.kind:
        case "numbers":
            return {
                "score": 100 * float(stats.pearsonr(gold, answers).statistic),
                "spearman": 100 * float(stats.spearmanr(gold, answers).statistic),
            }
        case "spans":
            pairs = list(zip(answers, gold, strict=True))
            by_row = [100 * metrics.span_f1(text, right["text"]) for text, right in pairs]
            exact = [
                100 * metrics.span_scores([right["text"]], [text])["exact_match"]
                for text, right in pairs
            ]
            return {**_of_rows(by_row), "exact_match": float(np.mean(exact))}
        case "keywords":
            return _keyword_scores(work, answers, rows)
        case _:
            right = [100.0 * (str(a) == str(b)) for a, b in zip(answers, gold, strict=True)]
            macro = 100 * f1_score(
                [str(g) for g in gold], [str(a) for a in answers], average="macro"
            )
            if work.score == "f1_macro":
                return {"score": float(macro), "accuracy": float(np.mean(right))}
            return {**_of_rows(right), "f1_macro": round(float(macro), 2)}


def _of_rows(by_row: list[float]) -> dict[str, Any]:
    return {
        "score": float(np.mean(by_row)),
        "by_row": [round(score, 1) for score in by_row],
    }


def _keyword_scores(work: Work, answers: list[list[str]], rows: Rows) -> dict[str, Any]:
    golds = [[word.strip() for word in row[work.target].split(";")] for row in rows]
    texts = [" ".join(row[name] for name in work.texts) for row in rows]
    by_row = [
        metrics.keyword_scores([gold], [answer], [text])[work.score]
        for gold, answer, text in zip(golds, answers, texts, strict=True)
    ]
    scores = metrics.keyword_scores(golds, answers, texts)
    others = {
        name: round(100 * scores[name], 2)
        for name in ("f1_at_5", "recall_present", "recall_absent")
        if name in scores
    }
    return {**_of_rows([100 * score for score in by_row]), **others}
