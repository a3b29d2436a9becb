"""A pickled predictor is the path of its folder and its settings; it loads when it is unpickled."""

import copy
import os
import pickle
import shutil
from pathlib import Path

import pytest
from saved_adapters import TEXTS, check_same_answer, saved

from peftcls import Classification, FastPaths, Predictor, load_predictor
from peftcls.engine.model_state import state_of

TASK = Classification(labels=("a", "b"))
LARGEST_PICKLE = 2000
"""Bytes: a path and a few settings."""
NOT_FROM_A_FOLDER = r"this predictor was not loaded from a folder, so it cannot be pickled.*Save it"


class Topic(Classification):
    """A task that peftcls does not know."""


def check_same(found, expected):
    for answer, right in zip(found, expected, strict=True):
        check_same_answer(answer, right)


def test_a_pickle_holds_no_weights_and_answers_the_same(bert, tmp_path):
    predictor = load_predictor(saved(bert, tmp_path / "one", TASK))
    pickled = pickle.dumps(predictor)
    assert len(pickled) < LARGEST_PICKLE
    check_same(pickle.loads(pickled).predict(TEXTS), predictor.predict(TEXTS))
    check_same(copy.deepcopy(predictor).predict(TEXTS), predictor.predict(TEXTS))


def test_the_settings_are_kept(bert, tmp_path):
    folder = saved(bert, tmp_path / "one", Topic(labels=("a", "b")))
    slow = FastPaths(packing=False)
    predictor = load_predictor(folder, tasks=[Topic], fast_paths=slow, device="cpu")
    loaded = pickle.loads(pickle.dumps(predictor))
    assert isinstance(loaded.task, Topic)
    assert state_of(loaded.model).fast_paths == slow
    assert pickle.dumps(loaded) == pickle.dumps(predictor)


def test_relative_paths_are_found_from_another_folder(bert, tmp_path, monkeypatch):
    os.symlink(bert, tmp_path / "base")
    saved(bert, tmp_path / "one", TASK)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(load_predictor("one", base="base"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(pickle.loads(pickled).predict(TEXTS)) == len(TEXTS)


def test_a_folder_that_is_gone_is_named(bert, tmp_path):
    folder = saved(bert, tmp_path / "one", TASK)
    pickled = pickle.dumps(load_predictor(folder))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=f"there is no folder {folder}"):
        pickle.loads(pickled)


def test_a_predictor_without_a_folder_is_not_pickled(bert, tmp_path):
    loaded = load_predictor(saved(bert, tmp_path / "one", TASK))
    predictor = Predictor(loaded.model, loaded.task, loaded.tokenizer)
    with pytest.raises(TypeError, match=NOT_FROM_A_FOLDER):
        pickle.dumps(predictor)


def test_several_adapters_are_the_paths_of_their_folders(bert, tmp_path):
    folders = [saved(bert, tmp_path / name, TASK, seed=seed) for seed, name in enumerate("ab")]
    together = load_predictor(folders)
    pickled = pickle.dumps(together)
    assert len(pickled) < LARGEST_PICKLE
    loaded = pickle.loads(pickled)
    for name, answers in together.predict_all(TEXTS).items():
        check_same(loaded.predict(TEXTS, name), answers)


def test_a_predictor_is_called_like_a_function(bert, tmp_path):
    folder = saved(bert, tmp_path / "one", TASK)
    predictor = load_predictor(folder)
    assert predictor(TEXTS, batch_size=2) == predictor.predict(TEXTS, batch_size=2)
    assert predictor("one text") == predictor.predict("one text")
    together = load_predictor([folder])
    assert together(TEXTS, "one") == together.predict(TEXTS, "one")


def test_a_predictor_describes_itself_in_a_line(bert, tmp_path):
    folder = saved(bert, tmp_path / "one", TASK)
    task = "Classification(labels=('a', 'b'), loss='cross_entropy')"
    base = f"base={str(Path(bert))!r}, device='cpu'"
    assert repr(load_predictor(folder, device="cpu")) == f"Predictor({task}, {base})"
    together = load_predictor([folder], device="cpu")
    assert repr(together) == f"ManyPredictor(one={task}, {base})"
