"""Predict on all processes of a training run: each answers its share of the rows, all get all."""

import time
from collections.abc import Callable, Iterable, Sequence

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from peftcls.data.reading import Row
from peftcls.engine import lost_processes
from peftcls.engine.agreement import failing_together, raise_together
from peftcls.engine.lost_processes import PATIENT_SECONDS
from peftcls.engine.model_state import state_of
from peftcls.inference.predictor import CHUNK_ROWS, Predictor
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.encoding import EncodedTable
from peftcls.tasks.own_metrics import OwnMetrics, score_answers
from peftcls.tasks.row_checks import check_rows


def predict_rows(
    predictor: Predictor, rows: datasets.Dataset, *, batch_size: int | None = None
) -> list[Answer]:
    """Answer rows that are not encoded yet: one answer a row, in the rows' order.

    Args:
        predictor: that answers.
        rows: in all processes the same.
        batch_size: at most this many rows at once.

    Raises:
        RowError: a column is missing or a text is empty.
    """
    if PartialState().num_processes == 1:
        return predictor.predict(rows, batch_size=batch_size)
    check_rows(predictor.task, rows, with_target=False)
    share = _share(predictor, len(rows))

    def answer() -> list[Answer]:
        return predictor.predict(rows.select(share), batch_size=batch_size) if share else []

    return _answer_together(predictor, answer, share, len(rows))


def predict_encoded(predictor: Predictor, inputs: EncodedTable) -> list[Answer]:
    """Answer rows that were checked and encoded without targets, in the rows' order."""
    count = len(inputs.lengths)
    share = _share(predictor, count)

    def answer() -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(share), CHUNK_ROWS):
            answers += predictor.answer(inputs.take(share[start : start + CHUNK_ROWS]))
        return answers

    return _answer_together(predictor, answer, share, count)


def score_gathered(
    task: Task, answers: Sequence[Answer], rows: Iterable[Row], metrics: OwnMetrics
) -> dict[str, float]:
    """Scores of answers that all processes have, the same in each of them.

    A metric of the user's may draw random numbers. The main process's scores count then, or one
    process could stop while others go on. Where it fails in one process, it fails in all.
    """
    with failing_together():
        scores = score_answers(task, answers, rows, metrics)
    shared = [scores]
    broadcast_object_list(shared)
    return shared[0]


def _share(predictor: Predictor, rows: int) -> list[int]:
    """The indices of the rows that this process answers.

    Processes that hold a base in shares all answer equally many: some answer row 0 again.
    """
    processes = PartialState()
    share = list(range(processes.process_index, rows, processes.num_processes))
    if state_of(predictor.model).shares is not None:
        share += [0] * (-(-rows // processes.num_processes) - len(share))
    return share


def _answer_together(
    predictor: Predictor, answer: Callable[[], list[Answer]], share: list[int], rows: int
) -> list[Answer]:
    """Answer the rows of this process, and collect the answers of all processes.

    Args:
        predictor: that answers.
        answer: gives the answers to the share.
        share: the rows of this process.
        rows: of all processes.

    Raises:
        Exception: that of the task, in all processes, where it cannot decode some answers.
    """
    started = time.perf_counter()
    answers: list[Answer] = []
    met: Exception | None = None
    try:
        answers = answer()
    except Exception as error:
        # Those that hold a base in shares with this process are waiting for a layer of it.
        if state_of(predictor.model).shares is not None:
            raise
        met = error
    # A process without answers does not know how long the others take.
    limit = PATIENT_SECONDS
    if answers:
        limit = lost_processes.stall_limit_seconds(time.perf_counter() - started)
    with lost_processes.watchdog(limit, PartialState().process_index, "an evaluation"):
        raise_together(met)
        pairs = list(zip(share, answers, strict=True))
        all_answers: dict[int, Answer] = dict(gather_object(pairs))
    return [all_answers[i] for i in range(rows)]
