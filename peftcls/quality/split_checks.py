"""Check one split: rows that the task cannot read, damaged texts, repeats, and ids."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from peftcls.quality.findings import MAX_SHOWN_ROWS, Finding, Severity, count_of
from peftcls.quality.scan import SplitScan

# In a validation or test split of fewer rows, one row is more than 5 % of a score.
MIN_EVALUATION_ROWS = 20

# The severity and the sentence of each fault of a cell; the sentence follows "column 'name' ".
FAULTS: dict[str, tuple[Severity, str]] = {
    "lost-character": (
        "warning",
        "holds the character U+FFFD, which stands for one that was lost; "
        "export the table again in UTF-8",
    ),
    "mojibake": (
        "warning",
        "holds UTF-8 that was read in another encoding, such as '\u00c3\u00a9' for '\u00e9'; "
        "read the file with its own encoding",
    ),
    "control-character": (
        "warning",
        "holds control characters; remove them",
    ),
    "html-entity": (
        "warning",
        "holds HTML entities such as '&amp;'; unescape them unless new texts will have them too",
    ),
    "html-tag": (
        "note",
        "holds HTML tags; remove them unless new texts will have them too",
    ),
    "no-word": (
        "warning",
        "has neither a letter nor a digit; leave such rows out",
    ),
    "near-empty": (
        "note",
        "has fewer than three characters",
    ),
    "impossible-answered": (
        "error",
        "has an answer though is_impossible is true; correct one of the two",
    ),
    "possible-unanswered": (
        "error",
        "has no answer though is_impossible is false; correct one of the two",
    ),
    "moved-answer": (
        "warning",
        "has an answer that is not at its answer_start; since it occurs once in its context, "
        "the start is corrected",
    ),
    "cut-word": (
        "warning",
        "has an answer that begins or ends inside a word",
    ),
    "doubtful-answer": (
        "warning",
        "has an answer that also occurs in a sentence with more words of the question; "
        "check its answer_start",
    ),
    "long-answer": (
        "warning",
        "has an answer with more tokens than max_answer_tokens, which can never be predicted as a "
        "whole; raise max_answer_tokens",
    ),
}


def row_findings(scan: SplitScan) -> Iterator[Finding]:
    """Report rows that the task cannot read, and damaged or odd cells."""
    for problem, rows in scan.problems.values():
        yield rows.finding("error", "bad-row", f"row {rows.rows[0]} {problem}.", scan.name)
    for (code, column), rows in scan.faults.items():
        severity, sentence = FAULTS[code]
        yield rows.finding(severity, code, f"column {column!r} {sentence}.", scan.name)
    if scan.other_separators.count:
        yield scan.other_separators.finding(
            "warning",
            "list-separator",
            "the answers look like lists with another separator than the task's; each is read as "
            "one item. Give the separator that they have, such as separator=',' "
            '(--label-separator ",").',
            scan.name,
        )


def repeated_rows(scan: SplitScan, *, has_closed_labels: bool) -> Iterator[Finding]:
    """Find texts that occur again in their split, with the same target or with another."""
    table = pd.DataFrame(
        {
            "row": np.array(scan.row_numbers),
            "text": np.array(scan.text_hashes),
            "target": np.array(scan.target_hashes),
        }
    )
    is_repeated = table.duplicated(["text", "target"])
    repeated = table["row"][is_repeated]
    if len(repeated):
        yield Finding(
            "note",
            "repeated-row",
            "the rows repeat an earlier row, apart from case and spaces; each copy counts.",
            scan.name,
            tuple(repeated[:MAX_SHOWN_ROWS].tolist()),
            len(repeated),
        )
    different = table[~is_repeated]
    texts_with_several_targets = different["text"][different["text"].duplicated()]
    contradicting = table["row"][table["text"].isin(texts_with_several_targets)]
    if len(contradicting):
        # Without a closed set of labels, a text may well have several right answers.
        severity: Severity = "warning" if has_closed_labels else "note"
        yield Finding(
            severity,
            "contradiction",
            "the same texts are in other rows with another target; decide for one.",
            scan.name,
            tuple(contradicting[:MAX_SHOWN_ROWS].tolist()),
            len(contradicting),
        )


def question_findings(scan: SplitScan) -> Iterator[Finding]:
    """Find ids that occur again, and paragraphs without questions."""
    ids = pd.Series(scan.ids, dtype=object)
    repeated = ids[ids.duplicated() & ids.notna()]
    if len(repeated):
        severity: Severity = "error" if scan.name == "train" else "warning"
        rows = [int(index) + 1 for index in repeated.index]
        yield Finding(
            severity,
            "duplicate-id",
            f"the id {repeated.iloc[0]!r} occurs again; give each question its own.",
            scan.name,
            tuple(rows[:MAX_SHOWN_ROWS]),
            len(rows),
        )
    without_questions = []
    for title, numbers in scan.paragraphs.items():
        for number in range(1, max(numbers)):
            if number not in numbers:
                without_questions.append((title, number))
    if without_questions:
        title, number = without_questions[0]
        count = count_of(len(without_questions), "paragraph")
        yield Finding(
            "note",
            "silent-paragraph",
            f"{count} without a question, for example paragraph {number} of {title!r}; "
            "such paragraphs are not used.",
            scan.name,
        )


def few_rows(scan: SplitScan) -> Iterator[Finding]:
    """Report a validation or test split that is too small for reliable scores."""
    if scan.rows >= MIN_EVALUATION_ROWS:
        return
    row_share = 1 / max(scan.rows, 1)
    yield Finding(
        "warning",
        "few-rows",
        f"{count_of(scan.rows, 'row')} to evaluate on, expected at least {MIN_EVALUATION_ROWS}; "
        f"one row changes a score by {row_share:.0%}, and confidence intervals say little.",
        scan.name,
    )
