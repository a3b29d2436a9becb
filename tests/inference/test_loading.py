"""`load_predictor`: switched-off fast paths and task classes of the caller's own."""

import dataclasses

import pytest
from saved_adapters import TEXTS, check_same_answer, saved

from peftcls import Classification, load_predictor
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_state import state_of

NO_FAST_PATHS = FastPaths(**{field.name: False for field in dataclasses.fields(FastPaths)})


class Topic(Classification):
    """A task that peftcls does not know."""


def topic():
    return Topic(labels=("one", "two", "three"), max_length=64)


def same_name():
    """A task class called like another one."""
    return type("Same", (Classification,), {})


@pytest.fixture
def folder(bert, tmp_path):
    return saved(bert, tmp_path / "one", Classification(labels=("a", "b")))


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_answers_do_not_depend_on_fast_paths(base, request, tmp_path):
    folder = saved(
        request.getfixturevalue(base), tmp_path / "one", Classification(labels=("a", "b"))
    )
    plain = load_predictor(folder, fast_paths=NO_FAST_PATHS)
    assert state_of(plain.model).fast_paths == NO_FAST_PATHS
    fast = load_predictor(folder)
    for found, expected in zip(plain.predict(TEXTS), fast.predict(TEXTS), strict=True):
        check_same_answer(found, expected)


def test_several_adapters_can_do_without_fast_paths(bert, tmp_path):
    folders = [
        saved(bert, tmp_path / name, Classification(labels=("a", "b")), seed=seed)
        for seed, name in enumerate(["one", "other"])
    ]
    plain = load_predictor(folders, fast_paths=NO_FAST_PATHS)
    assert state_of(plain.model).fast_paths == NO_FAST_PATHS
    fast = load_predictor(folders)
    for name in ("one", "other"):
        answers = zip(plain.predict(TEXTS, name), fast.predict(TEXTS, name), strict=True)
        for found, expected in answers:
            check_same_answer(found, expected)


def test_a_folder_of_a_custom_task_needs_its_class(bert, tmp_path):
    folder = saved(bert, tmp_path / "topics", topic())
    with pytest.raises(ValueError, match="names the task 'Topic'"):
        load_predictor(folder)
    predictor = load_predictor(folder, tasks=[Topic])
    assert isinstance(predictor.task, Topic)
    assert predictor.label_names == ("one", "two", "three")
    together = load_predictor([folder], tasks=[Topic])
    for found, expected in zip(
        together.predict(TEXTS, "topics"), predictor.predict(TEXTS), strict=True
    ):
        check_same_answer(found, expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"directory": 3}, r"^directory=3: expected "),
        ({"base": 3}, r"^base=3: expected "),
        ({"tasks": Classification}, r"^tasks=.*: expected a list of task classes, such as"),
        ({"tasks": ["Stars"]}, r"^tasks has 'Stars', expected a subclass of Task, not an instance"),
        ({"tasks": [int]}, r"^tasks has <class 'int'>, expected a subclass of Task"),
        ({"tasks": [same_name(), same_name()]}, r"^tasks has two classes called 'Same'; rename"),
        ({"fast_paths": "packing"}, r"^fast_paths='packing': expected a FastPaths, such as "),
    ],
)
def test_an_argument_of_a_wrong_type_is_one_sentence(arguments, sentence, folder):
    with pytest.raises(ValueError, match=sentence):
        load_predictor(**{"directory": folder, **arguments})


def test_a_wrong_environment_variable_is_not_blamed_on_the_base(folder, monkeypatch):
    monkeypatch.setenv("PEFTCLS_FAST_PATHS", "foo")
    with pytest.raises(ValueError, match=r"^PEFTCLS_FAST_PATHS=foo: there is no fast path 'foo'"):
        load_predictor(folder)
