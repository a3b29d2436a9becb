"""The data sets of `evidence.py`: rows to train on, to choose the best step by, and to test on.

Each seed draws other training and validation rows from the training file. The test rows are the
same for all seeds and systems, and nothing is chosen by them.
"""

import csv
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any, Literal

from evidence_hard import Rows, read_articles, read_rare_spam, with_wrong_labels

import peftcls

Kind = Literal["labels", "numbers", "spans", "prompt", "keywords"]
PAPERS = ("title", "abstract")
PAIRS = ("sentence1", "sentence2")
IS_MEDICAL = (
    "Title: {title}\nAbstract: {input}\nIs this a medical paper? 1 for yes, 0 for no.\nAnswer: "
)

KEYWORDS_OF = (
    "List the keywords of this paper, separated by semicolons.\n"
    "Title: {title}\nAbstract: {input}\nKeywords: "
)
MAX_KEYWORD_TOKENS = 96
MAX_KEYWORD_CHARACTERS = 240


@dataclasses.dataclass(frozen=True)
class Work:
    """A data set, and what is to be learnt from it.

    Args:
        kind: of answers; "prompt" is a closed set of labels after an instruction.
        files: of the training and the test rows, in the folder of data.
        texts: the columns that are read.
        target: the column with the answers.
        sizes: rows to train on, to choose the best step by, and to test on.
        max_length: tokens of a row.
        score: what systems are compared by.
        of_each: if given, so many training rows of each label instead.
        epochs: of all systems; the default of peftcls unless given.
        hard: what makes the table harder, if anything: see `evidence_hard.py`.
    """

    kind: Kind
    files: tuple[str, str]
    texts: tuple[str, ...]
    target: str
    sizes: tuple[int, int, int]
    max_length: int
    score: str = "accuracy"
    of_each: int | None = None
    epochs: int | None = None
    hard: Literal["rare label", "wrong labels", "many labels"] | None = None

    def task(self) -> peftcls.Task:
        """The task with default settings; it has not learnt the labels."""
        text = self.texts if len(self.texts) > 1 else self.texts[0]
        match self.kind:
            case "labels":
                return peftcls.Classification(
                    text=text, label=self.target, max_length=self.max_length
                )
            case "numbers":
                return peftcls.Regression(text=text, target=self.target, max_length=self.max_length)
            case "spans":
                return peftcls.ExtractiveQA(max_length=self.max_length, stride=96)
            case "prompt":
                return peftcls.Instruction(
                    template=IS_MEDICAL,
                    input="abstract",
                    output=self.target,
                    labels=("0", "1"),
                    max_length=self.max_length,
                )
            case "keywords":
                return peftcls.Instruction(
                    template=KEYWORDS_OF,
                    input="abstract",
                    output=self.target,
                    separator=";",
                    max_length=self.max_length,
                    max_new_tokens=MAX_KEYWORD_TOKENS,
                )


SMS = ("sms_spam/train.csv", "sms_spam/test.csv")
COLLECTION = "sms_spam/SMSSpamCollection.tsv"
ABSTRACTS = ("medical_papers/train.csv", "medical_papers/validation.csv")
KEYWORDS = ("medical_papers/keywords_train.csv", "medical_papers/keywords_validation.csv")
REVIEWS = ("imdb/train.csv", "imdb/validation.csv")
MRPC = ("mrpc/train.csv", "mrpc/validation.csv")
STS_B = ("sts_b/train.csv", "sts_b/validation.csv")
SQUAD = ("squad/train.json", "squad/validation.json")

WORK = {
    "sms": Work("labels", SMS, ("Text",), "Label", (400, 149, 300), 128),
    "medical": Work("labels", ABSTRACTS, PAPERS, "label", (400, 200, 200), 160),
    "sms_all": Work("labels", SMS, ("Text",), "Label", (896, 149, 300), 128),
    "sms_validation": Work(
        "labels", (SMS[0], "sms_spam/validation.csv"), ("Text",), "Label", (896, 149, 149), 128
    ),
    "medical_long": Work("labels", ABSTRACTS, PAPERS, "label", (1000, 200, 200), 512),
    "medical_all": Work("labels", ABSTRACTS, PAPERS, "label", (1000, 200, 200), 160),
    "reviews": Work("labels", REVIEWS, ("text",), "label", (400, 200, 300), 128),
    "paraphrases": Work("labels", MRPC, PAIRS, "label", (800, 200, 408), 96),
    "similarity": Work("numbers", STS_B, PAIRS, "score", (800, 200, 500), 96, "pearson"),
    "squad": Work(
        "spans", SQUAD, ("question", "context"), "answers", (1200, 0, 400), 320, "f1", epochs=2
    ),
    "medical_prompt": Work("prompt", ABSTRACTS, PAPERS, "label", (300, 100, 200), 320),
    "keywords": Work("keywords", KEYWORDS, PAPERS, "Keywords", (1000, 50, 200), 384, "f1_at_10"),
}
WORK |= {
    "sms_rare": dataclasses.replace(
        WORK["sms"],
        files=(COLLECTION,) * 2,
        sizes=(800, 200, 2000),
        score="f1_macro",
        hard="rare label",
    ),
    "sms_wrong": dataclasses.replace(WORK["sms"], hard="wrong labels"),
    "articles": Work(
        "labels", (SQUAD[0],) * 2, ("question",), "title", (0, 0, 0), 64, hard="many labels"
    ),
}
for name in ("sms", "medical", "reviews"):
    for rows in (8, 16, 32, 64):
        WORK[f"{name}_{rows}"] = dataclasses.replace(
            WORK[name], sizes=(0, 0, WORK[name].sizes[2]), of_each=rows
        )


def read_splits(work: Work, data: Path, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows to train on, to choose the best step by, and to test on."""
    if work.hard == "many labels":
        return read_articles(_existing(data / work.files[0]), seed)
    if work.hard == "rare label":
        return read_rare_spam(_existing(data / work.files[0]), seed, work.sizes)
    train = _read(work, data / work.files[0])
    test = _read(work, data / work.files[1])
    if work.kind == "keywords":
        train = [row for row in train if _is_learnable(row, work.target)]
    random.Random(seed).shuffle(train)
    random.Random(0).shuffle(test)
    train_size, valid_size, test_size = work.sizes
    if work.hard == "wrong labels":
        train = with_wrong_labels(train, work.target, seed)
    if work.of_each:
        chosen: Rows = []
        for label in sorted({row[work.target] for row in train}):
            chosen += [row for row in train if row[work.target] == label][: work.of_each]
        return chosen, [], test[:test_size]
    return (
        train[:train_size],
        train[train_size : train_size + valid_size],
        test[:test_size],
    )


def _existing(file: Path) -> Path:
    if not file.is_file():
        sys.exit(f"There is no {file}; give --data the folder that holds {file.parent.name}.")
    return file


def _read(work: Work, file: Path) -> Rows:
    _existing(file)
    if file.suffix == ".json":
        return list(peftcls.read_rows(file))
    with file.open(newline="", encoding="utf-8") as opened:
        table = list(csv.DictReader(opened))
    rows: Rows = []
    for row in table:
        kept: dict[str, Any] = {name: row[name] for name in (*work.texts, work.target)}
        if work.kind == "numbers":
            kept[work.target] = float(kept[work.target])
        rows.append(kept)
    return rows


def _is_learnable(row: dict[str, Any], target: str) -> bool:
    """Whether a paper has an abstract, and keywords that are no longer than an answer."""
    return bool(row["abstract"].strip()) and len(row[target]) <= MAX_KEYWORD_CHARACTERS


def described(work: Work) -> str:
    """The settings of a data set as a line of text, by which kept results are recognised."""
    settings = dataclasses.asdict(work)
    if not work.hard:
        # Results from before there was such a setting are kept.
        del settings["hard"]
    return json.dumps(settings, sort_keys=True)
