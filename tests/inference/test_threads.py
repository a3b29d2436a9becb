"""Threads that use one predictor, or several, get the answers that one thread gets."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from saved_adapters import TEXTS, check_same_answer, saved

from peftcls import Classification, ExtractiveQA, Instruction, load_predictor

THREADS = 8
CALLS = 50
TOLERANCE = 1e-6
DIFFERENT_CALLS = 12
LONG_TEXT = "the patient recovered after the bank raised rates " * 4


@pytest.fixture(autouse=True)
def frequent_switches():
    """Let threads interrupt one another as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def head(count):
    return Classification(labels=tuple(f"label {n}" for n in range(count)), max_length=64)


def text_rows():
    return [{"text": text} for text in [*TEXTS, LONG_TEXT]]


def pair_rows():
    return [{"a": text, "b": LONG_TEXT} for text in TEXTS]


def question_rows():
    return [{"question": "who recovered?", "context": text} for text in [*TEXTS, LONG_TEXT]]


def instruction_rows():
    return [{"instruction": "Say it.", "input": text} for text in TEXTS]


CASES = {
    "a head on an encoder": ("bert", head(3), text_rows()),
    "a head on a decoder": ("gpt2", head(3), text_rows()),
    "windows over pairs": (
        "bert",
        Classification(labels=("yes", "no"), text=("a", "b"), max_length=40, long_text="windows"),
        pair_rows(),
    ),
    "an instruction with labels": (
        "llama",
        Instruction(
            template="Say: {input}\nAnswer: ",
            labels=("yes", "no", "maybe"),
            max_length=96,
            max_new_tokens=6,
        ),
        instruction_rows(),
    ),
    "questions": ("bert", ExtractiveQA(max_length=48, stride=16), question_rows()),
}


def choose_calls(rows):
    """Calls with one to six rows of unequal lengths."""
    chooser = random.Random(1)
    return [chooser.choices(rows, k=1 + n % 6) for n in range(DIFFERENT_CALLS)]


def check_in_threads(predict_functions, calls, expected, *, times=CALLS):
    """Make many calls in threads, thread n with function n, and compare all answers."""
    problems = []
    start = threading.Barrier(len(predict_functions))

    def make_calls(thread):
        order = random.Random(thread)
        try:
            start.wait()
            for _ in range(times):
                chosen = order.randrange(len(calls[thread]))
                answers = predict_functions[thread](calls[thread][chosen])
                for answer, right in zip(answers, expected[thread][chosen], strict=True):
                    check_same_answer(answer, right, TOLERANCE)
        except BaseException as problem:
            problems.append(problem)
            raise

    def record(args):
        """The problem is raised in the main thread."""

    hook = threading.excepthook
    threading.excepthook = record
    try:
        threads = [
            threading.Thread(target=make_calls, args=(number,))
            for number in range(len(predict_functions))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    if problems:
        raise problems[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_threads_share_one_predictor(case, request, tmp_path):
    base, task, rows = CASES[case]
    folder = saved(request.getfixturevalue(base), tmp_path / "adapter", task)
    predictor = load_predictor(folder)
    calls = choose_calls(rows)
    expected = [load_predictor(folder).predict(call) for call in calls]
    check_in_threads([predictor.predict] * THREADS, [calls] * THREADS, [expected] * THREADS)


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_the_number_of_threads_does_not_change_the_answers(threads, bert, tmp_path):
    predictor = load_predictor(saved(bert, tmp_path / "adapter", head(3)))
    calls = choose_calls(text_rows())
    expected = [predictor.predict(call) for call in calls]
    check_in_threads(
        [predictor.predict] * threads, [calls] * threads, [expected] * threads, times=8
    )


def test_the_first_calls_may_come_from_several_threads(bert, tmp_path):
    folder = saved(bert, tmp_path / "adapter", head(3))
    calls = choose_calls(text_rows())
    alone = load_predictor(folder)
    expected = [alone.predict(call) for call in calls]
    for _ in range(5):
        predictor = load_predictor(folder)
        check_in_threads([predictor.predict] * 2, [calls[:1]] * 2, [expected[:1]] * 2, times=2)


@pytest.mark.slow
def test_threads_use_predictors_of_their_own(bert, gpt2, tmp_path):
    folders = [
        saved(bert, tmp_path / "encoder", head(3)),
        saved(gpt2, tmp_path / "decoder", head(4)),
        saved(bert, tmp_path / "other", head(5), seed=2),
    ]
    calls = choose_calls(text_rows())
    expected = []
    for folder in folders:
        alone = load_predictor(folder)
        expected.append([alone.predict(call) for call in calls])
    predictors = [load_predictor(folder) for folder in folders]
    check_in_threads([p.predict for p in predictors], [calls] * len(folders), expected)


def test_threads_share_one_predictor_of_many_adapters(bert, tmp_path):
    names = ["two", "five", "twenty"]
    folders = [
        saved(bert, tmp_path / name, head(count), seed=count)
        for name, count in zip(names, (2, 5, 20), strict=True)
    ]
    together = load_predictor(folders)

    def predict(call):
        adapters = [names[place % len(names)] for place in range(len(call))]
        return together.predict(call, adapters)

    calls = choose_calls(text_rows())
    expected = [predict(call) for call in calls]
    check_in_threads([predict] * THREADS, [calls] * THREADS, [expected] * THREADS)


def test_the_number_of_shortened_rows_is_that_of_one_call(bert, tmp_path):
    predictor = load_predictor(saved(bert, tmp_path / "adapter", head(2)))
    long_text = LONG_TEXT * 2
    calls = [[long_text] * 3 + ["yes"], [long_text] * 5 + ["no"]]
    expected = [predictor.predict(call) for call in calls]
    for _ in range(5):
        check_in_threads(
            [predictor.predict] * 2,
            [[call] for call in calls],
            [[answers] for answers in expected],
            times=4,
        )
        assert predictor.shortened_rows in (3, 5)


def test_rows_that_are_still_being_made_hold_up_no_other_thread(bert, tmp_path):
    predictor = load_predictor(saved(bert, tmp_path / "adapter", head(3)))
    made = []

    def rows():
        with ThreadPoolExecutor(1) as pool:
            made.extend(pool.submit(predictor.predict, ["a lake"]).result(60))
        yield "a lake"

    (answer,) = predictor.predict(rows())
    assert answer.label == made[0].label
