"""Export an adapter and its base to ONNX: one file that runs without PyTorch."""

import dataclasses
import importlib.util
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import source_name
from peftcls.data.tables import RowsOrTexts
from peftcls.engine.batch import Batch
from peftcls.engine.model_state import base_facts
from peftcls.errors import RowError
from peftcls.inference.onnx_graph import HeadGraph, OnnxSession, quantize_weights, write_graph
from peftcls.inference.predictor import Predictor, rows_to_answer, tokenize_rows
from peftcls.models.adapter_folder import load_adapter
from peftcls.models.merging import (
    adapter_logits,
    check_out,
    compare,
    encode_probes,
    merge_weights,
    new_folder,
)
from peftcls.models.mixed_precision import widen_all
from peftcls.models.pretrained_io import quiet
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Feature, Task, token_limit, without_padding
from peftcls.tasks.row_checks import check_rows

logger = logging.getLogger("peftcls")

MODEL_FILE = "model.onnx"
NOTES_FILE = "peftcls_onnx.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""The largest difference of a logit: another program adds up in another order."""
CHECK_BATCH_ROWS = 16
FEWEST_EQUAL = 0.9
"""A file with fewer answers that are those of the adapter is warned of."""


@dataclasses.dataclass(frozen=True)
class OnnxExport:
    """What was exported, and how its answers compare with those of the adapter.

    Attributes:
        directory: the new folder.
        rows: how many were answered by both.
        equal_share: the share of rows with the same label, labels or text; None for numbers.
        mean_difference: of numbers, in their units; None for anything else.
        remarks: what a program that runs the file must do by itself.
        scores: of the file on rows that have a target; empty where they have none.
        adapter_scores: of the folder on the same rows.
    """

    directory: Path
    rows: int
    equal_share: float | None
    mean_difference: float | None
    remarks: tuple[str, ...]
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    adapter_scores: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        if self.mean_difference is not None:
            found = f"numbers differ by {self.mean_difference:.3g} on average"
        else:
            found = f"{100 * (self.equal_share or 0.0):.1f} % of the answers are the same"
        for name, score in itertools.islice(self.scores.items(), 1):
            found += f"; {name} {score:.4f}, of the adapter {self.adapter_scores[name]:.4f}"
        return f"exported to {self.directory}; on {self.rows} rows {found}"


def export_onnx(
    directory: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    check: RowsOrTexts | None = None,
    base: str | Path | None = None,
    tasks: Sequence[type[Task]] = (),
) -> OnnxExport:
    """Merge an adapter into its base, and write the model as ONNX with everything it needs.

    The file takes batches of any size and length. What the head reads of a text (its first or last
    token, or the mean) is part of it; the decisions that were fitted, windows over long texts and
    the scale of numbers are not, and stand in `peftcls_onnx.json`. onnxruntime answers probe texts,
    row by row and padded, before anything is written to `out`.

    Args:
        directory: written by `Trainer.save`.
        out: the new folder; it must not exist, or be empty.
        int8: hold the weights in 8 bits (dynamic quantization): a quarter of the size, and answers
            that may differ.
        check: rows to compare answers on, and scores where they have a target; the probe texts
            unless given.
        base: where the base model is now, if it moved.
        tasks: your own task classes, beside the four built-in ones.

    Raises:
        ValueError: a package is missing, the folder is damaged, `out` is not empty, the model
            cannot be exported, or the file would answer otherwise; nothing is written then.
        RowError: a row of `check` cannot be answered.
    """
    _require_packages()
    out = Path(out)
    check_out(out)
    model, task, tokenizer = load_adapter(directory, base=base, quantize="none", tasks=tasks)
    if not task.new_head:
        raise ValueError(
            f"{directory} cannot be exported to ONNX: {type(task).__name__} answers with a "
            "language model, and only heads are exported; use `peftcls merge`."
        )
    if base_facts(model).pooling == "compare":
        raise ValueError(
            f"{directory} cannot be exported to ONNX: its head compares two texts, and reads three "
            "sequences of each row; train with pooling='mean', or serve the folder."
        )
    widen_all(model)
    predictor = Predictor(model.eval(), task, tokenizer)
    table = None if check is None else _table_to_check(task, check)
    features = _check_features(predictor, table)
    expected = predictor.answer(features)
    probes = encode_probes(task, tokenizer)
    logits = adapter_logits(task, model, probes, tokenizer)
    facts = base_facts(model)
    graph = HeadGraph(merge_weights(model), task, facts).eval()
    remarks = _remarks(task, tokenizer)
    with new_folder(out) as temporary:
        write_graph(temporary / MODEL_FILE, graph, task.collate(probes[:2], tokenizer), directory)
        session = OnnxSession(temporary / MODEL_FILE)
        failure = f"{directory} cannot be exported to ONNX: onnxruntime computes other logits"
        _check_logits(task, tokenizer, probes, logits, session, failure)
        if int8:
            quantize_weights(temporary / MODEL_FILE)
            session = OnnxSession(temporary / MODEL_FILE)
        answers = _answers(task, tokenizer, features, session)
        result = OnnxExport(
            out,
            len(features),
            *_difference(task, expected, answers),
            remarks,
            *_scores(task, (answers, expected), table),
        )
        with quiet():
            graph.inner.config.save_pretrained(temporary)
            tokenizer.save_pretrained(str(temporary))
        notes = _notes(task, tokenizer, session.inputs, result, int8=int8)
        (temporary / NOTES_FILE).write_text(
            json.dumps(notes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    if result.equal_share is not None and result.equal_share < FEWEST_EQUAL:
        logger.warning(
            f"{100 * (1 - result.equal_share):.0f} % of the {result.rows} rows are answered "
            "otherwise than by the adapter. Compare scores on labelled rows (--check), or export "
            "without int8 (--int8)."
        )
    return result


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the export to ONNX needs {', '.join(missing)}: pip install 'peftcls[onnx]'."
        )


# Comparing answers


def _table_to_check(task: Task, rows: RowsOrTexts) -> datasets.Dataset:
    """The rows that are given to compare answers on."""
    table = rows_to_answer(task, rows)
    if len(table) == 0:
        raise ValueError("check has no rows, expected some to compare answers on.")
    check_rows(task, table, with_target=False)
    return table


def _check_features(predictor: Predictor, table: datasets.Dataset | None) -> list[Feature]:
    """The rows to compare answers on, tokenized: those given, or the probe texts."""
    task = predictor.task
    if table is None:
        return encode_probes(task, predictor.tokenizer)
    columns = table.select_columns(task.columns(with_target=False)).to_list()
    return tokenize_rows(
        task, columns, predictor.tokenizer, source=source_name(table), numbers=itertools.count(1)
    )


def _answers(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[Feature],
    session: OnnxSession,
) -> list[Answer]:
    """The answers by onnxruntime, with the task's own windows and decisions."""
    answers: list[Answer] = []
    for start in range(0, len(features), CHECK_BATCH_ROWS):
        chosen = features[start : start + CHECK_BATCH_ROWS]
        batch = task.collate(chosen, tokenizer)
        answers += task.decode_logits(session.logits(batch), batch, chosen, tokenizer)
    return answers


def _scores(
    task: Task, answers: Sequence[Sequence[Answer]], table: datasets.Dataset | None
) -> list[dict[str, float]]:
    """The scores of several answers; none where rows have no target, or one that cannot be read."""
    if table is None:
        return []
    if not set(task.columns(with_target=True)) <= set(table.column_names):
        return []
    try:
        check_rows(task, table)
    except RowError as error:
        logger.warning(f"The rows to check are not scored: {error}")
        return []
    return [task.score(each, table) for each in answers]


def _check_logits(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Feature],
    expected: Sequence[torch.Tensor],
    session: OnnxSession,
    failure: str,
) -> None:
    """Raise ValueError where onnxruntime's logits differ, row by row or padded."""
    row_by_row: list[torch.Tensor] = []
    for probe in probes:
        row_by_row += _rows_of_logits(task, task.collate([probe], tokenizer), session)
    compare(expected, row_by_row, failure, TOLERANCE)
    padded = _rows_of_logits(task, task.collate(probes, tokenizer), session)
    compare(expected, padded, f"{failure} where rows are padded", TOLERANCE)


def _rows_of_logits(task: Task, batch: Batch, session: OnnxSession) -> list[torch.Tensor]:
    logits = session.logits(batch)
    if task.answer_kind == "span":
        return without_padding(logits, batch["attention_mask"])
    return list(logits)


def _difference(
    task: Task, expected: Sequence[Answer], found: Sequence[Answer]
) -> tuple[float | None, float | None]:
    """The share of equal answers, or the mean difference of numbers."""
    pairs = list(zip(expected, found, strict=True))
    if task.answer_kind == "number":
        differences = [abs(float(a.value or 0.0) - float(b.value or 0.0)) for a, b in pairs]
        return None, sum(differences) / len(pairs)
    equal = sum((a.label, a.labels, a.text) == (b.label, b.labels, b.text) for a, b in pairs)
    return equal / len(pairs), None


# What a program that runs the file must know


def _remarks(task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What is not in the graph, in one sentence each."""
    remarks = []
    for remark in task.merge_remarks(tokenizer):
        remarks.append(remark.replace("transformers gives", "The file gives"))
    return tuple(remarks)


def _notes(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    result: OnnxExport,
    *,
    int8: bool,
) -> dict[str, Any]:
    """What stands in `peftcls_onnx.json`."""
    return {
        "format": 1,
        "file": MODEL_FILE,
        "inputs": list(inputs),
        "output": "logits",
        "labels": list(task.labels or ()),
        "max_length": token_limit(tokenizer, task.max_length),
        "padding_side": tokenizer.padding_side,
        "int8": int8,
        "task": task.to_json(),
        "remarks": list(result.remarks),
        "checked_rows": result.rows,
        "equal_share": result.equal_share,
        "mean_difference": result.mean_difference,
        "scores": result.scores,
        "adapter_scores": result.adapter_scores,
    }
