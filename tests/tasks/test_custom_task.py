"""A task of one's own is trained, saved, loaded and reported like the four built-in ones."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import pytest
import torch
from task_checks import check_task
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

import peftcls
from peftcls import Answer, RowError, Task, metrics
from peftcls.baselines import baselines
from peftcls.data.reading import Row, as_dataset
from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import class_logits, in_float32
from peftcls.inference.predict_file import predict_file
from peftcls.report import write_report
from peftcls.tasks.base import Feature
from peftcls.tasks.labels import label_name, label_order
from peftcls.tasks.splitting import split_off
from peftcls.tasks.text_encoding import (
    collate_texts,
    encode_texts,
    rows_from_texts,
    text_problem,
)
from peftcls.training.run_report import describe_run


@dataclasses.dataclass(frozen=True)
class OrdinalLevels(Task):
    """A title and a body get one of several ordered levels (continuation-ratio model).

    Output k of the head is the logit of "higher than level k, given that it is at least level k".
    """

    title: str = "title"
    body: str = "body"
    level: str = "level"
    labels: tuple[str, ...] | None = None
    max_length: int = 64

    monitor: ClassVar[str] = "f1_macro"
    new_head: ClassVar[bool] = True
    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    peft_type: ClassVar[str] = "SEQ_CLS"

    def columns(self, *, with_target: bool) -> list[str]:
        texts = [self.title, self.body]
        return [*texts, self.level] if with_target else texts

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> "OrdinalLevels":
        names = {label_name(value) for value in as_dataset(rows)[self.level]}
        return dataclasses.replace(self, labels=self.labels or label_order(names))

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        problem = text_problem(row, self.columns(with_target=False))
        if problem or not with_target:
            return problem
        if label_name(row[self.level]) not in (self.labels or ()):
            return f"has {row[self.level]!r} in column {self.level!r}, expected {self.labels}"
        return None

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": len(self.labels or ()) - 1}

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, self.columns(with_target=False))

    def text_of(self, row: Row) -> str:
        return f"{row[self.title]}: {row[self.body]}"

    def gold_of(self, row: Row) -> tuple[str, ...]:
        return (label_name(row[self.level]),)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: Any, *, with_target: bool
    ) -> Iterator[Feature]:
        texts = [[self.text_of(row)] for row in rows]
        encoded = encode_texts(texts, tokenizer, max_length=self.max_length, long_text="truncate")
        for row, feature in zip(rows, encoded, strict=True):
            if with_target:
                feature["target"] = (self.labels or ()).index(label_name(row[self.level]))
                feature["weight"] = 1.0
            yield feature

    def collate(self, features: Sequence[Feature], tokenizer: Any) -> Batch:
        batch = collate_texts(features, tokenizer)
        if "target" in features[0]:
            batch["target"] = torch.tensor([feature["target"] for feature in features])
        return batch

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each level, of shape (rows, levels)."""
        reached = F.pad(F.logsigmoid(logits).cumsum(1), (1, 0))
        stopped = F.pad(F.logsigmoid(-logits), (0, 1))
        return reached + stopped

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits = in_float32(class_logits(model, batch, None))
        return F.nll_loss(self.log_probabilities(logits), batch["target"], reduction="sum")

    def decode(
        self, model: torch.nn.Module, batch: Batch, features: Sequence[Feature], tokenizer: Any
    ) -> list[Answer]:
        logits = class_logits(model, batch, None).double()
        answers = []
        for row in self.log_probabilities(logits).exp().tolist():
            probabilities = dict(zip(self.labels or (), row, strict=True))
            label = max(probabilities, key=lambda name: probabilities[name])
            answers.append(Answer(label=label, probabilities=probabilities))
        return answers

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.LABEL_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        return metrics.closed_set_scores(
            [self.gold_of(row)[0] for row in rows],
            [answer.label for answer in answers],
            [answer.probabilities or {} for answer in answers],
            self.labels or (),
        )


@dataclasses.dataclass(frozen=True)
class TitledClassification(peftcls.Classification):
    """The built-in classification, on a text that is put together from two columns."""

    title: str = "title"

    def text_columns(self) -> tuple[str, ...]:
        return (self.title, "body")

    def text_of(self, row: Row) -> str:
        return f"{row[self.title]} | {row['body']}"

    def encode_many(
        self, rows: Sequence[Row], tokenizer: Any, *, with_target: bool
    ) -> Iterator[Feature]:
        texts = [[self.text_of(row)] for row in rows]
        encoded = encode_texts(
            texts, tokenizer, max_length=self.max_length, long_text=self.long_text
        )
        for row, feature in zip(rows, encoded, strict=True):
            if with_target:
                self._add_target(feature, row)
            yield feature


BODIES = {
    "1": ["see you at lunch", "free prize, call now!", "yes no maybe"],
    "2": ["stock prices fell", "the bank raised rates", "stock prices fell after lunch"],
    "3": ["a new drug was given", "the patient recovered", "a drug for the patient"],
}


def rows_of_levels(copies: int = 2) -> list[Row]:
    """Rows of three levels that the words tell apart."""
    rows = []
    for n in range(copies):
        for level, bodies in BODIES.items():
            for body in bodies:
                rows.append({"title": f"label {n}", "body": body, "level": level})
    return rows


def right_level(row: Row) -> Answer:
    probabilities = {level: float(level == row["level"]) for level in BODIES}
    return Answer(label=row["level"], probabilities=probabilities)


@dataclasses.dataclass(frozen=True)
class TrainedTask:
    """A trained task, with its folder and its rows."""

    task: Task
    folder: Any
    train: datasets.Dataset
    test: datasets.Dataset
    answers: list[Answer]
    run: Any


@pytest.fixture(scope="module", params=["ordinal", "titled"])
def trained(request, bert, tmp_path_factory) -> TrainedTask:
    """Train on two copies of the rows, save, and answer the third copy."""
    train = as_dataset(rows_of_levels(2))
    test = as_dataset(rows_of_levels(3)[18:])
    task: Task = OrdinalLevels()
    if request.param == "titled":
        task = TitledClassification(label="level", max_length=64)
    task = task.learn(train)
    folder = tmp_path_factory.mktemp("custom") / "adapter"
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(folder, epochs=24, batch_size=6, learning_rate=5e-3)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(train, test)
    answers = trainer.predict(test)
    return TrainedTask(task, folder, train, test, answers, describe_run(trainer))


def test_it_keeps_the_contract_of_tasks(bert):
    check_task(OrdinalLevels(), bert, rows_of_levels(), right=right_level)


def test_a_subclass_of_a_built_in_task_keeps_the_contract_too(bert):
    task = TitledClassification(label="level", max_length=64)
    check_task(task, bert, rows_of_levels(), right=right_level)


def test_it_learns_and_its_folder_answers_the_same(trained):
    assert trained.task.score(trained.answers, trained.test)["accuracy"] > 0.7
    predictor = peftcls.load_predictor(trained.folder, tasks=[type(trained.task)])
    assert predictor.task == trained.task
    again = predictor.predict(trained.test)
    assert [answer.label for answer in again] == [answer.label for answer in trained.answers]
    for one, other in zip(again, trained.answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_folder_that_names_an_unknown_task_says_what_to_pass(trained):
    name = type(trained.task).__name__
    with pytest.raises(ValueError, match=rf"'{name}'.*tasks=\["):
        peftcls.load_predictor(trained.folder)


def test_several_folders_of_it_share_one_base(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    many = peftcls.load_predictor([trained.folder, copy], tasks=[type(trained.task)])
    for answers in many.predict_all(trained.test).values():
        assert [answer.label for answer in answers] == [a.label for a in trained.answers]


def test_it_gets_a_model_card(trained):
    card = (trained.folder / "README.md").read_text(encoding="utf-8")
    assert f"# {type(trained.task).__name__} on " in card
    assert "pipeline_tag: text-classification" in card
    assert "`1`, `2`, `3`" in card


def test_it_is_merged_into_a_plain_model(trained, tmp_path):
    out = peftcls.merge_adapter(trained.folder, tmp_path / "merged", tasks=[type(trained.task)])
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    assert plain.config.num_labels == trained.task.model_settings()["num_labels"]


def test_training_continues_from_its_folder(trained):
    _, task, _ = peftcls.learn_on(trained.folder, trained.test, tasks=[type(trained.task)])
    assert task == trained.task


def test_it_gets_a_report(trained, tmp_path):
    systems = baselines(trained.task, trained.train, trained.test)
    assert systems
    write_report(
        tmp_path,
        task=trained.task,
        train=trained.train,
        test=trained.test,
        answers=trained.answers,
        systems=systems,
        run=trained.run,
        resamples=30,
    )
    assert (tmp_path / "report.html").is_file()
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert "f1_macro" in json.dumps(found)


def test_it_predicts_to_a_file(trained, tmp_path):
    source = tmp_path / "rows.csv"
    trained.test.to_csv(source, index=False)
    predictor = peftcls.load_predictor(trained.folder, tasks=[type(trained.task)])
    out = tmp_path / "answers.csv"
    rows, columns = predict_file(predictor, trained.folder, source, out, probabilities=True)
    assert rows == len(trained.test)
    assert columns[:2] == ["label", "probability"]
    assert set(columns[2:]) == {f"probability_{level}" for level in BODIES}
    with out.open(encoding="utf-8", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels == [answer.label for answer in trained.answers]


def test_its_rows_are_split_and_examined(trained):
    rest, aside = split_off(trained.task, as_dataset(rows_of_levels(4)), 0.25, name="test")
    assert len(rest) + len(aside) == 36
    assert {row["level"] for row in aside} == set(BODIES)
    examination = peftcls.examine_rows(trained.task, trained.train, trained.test)
    assert not examination.errors


def test_a_wrong_row_is_named(trained):
    rows = [*rows_of_levels(1), {"title": "x", "body": "yes", "level": "7"}]
    with pytest.raises(RowError, match=r"^row 10 of rows has .*'7'"):
        peftcls.check_rows(trained.task, as_dataset(rows))
