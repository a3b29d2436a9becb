"""The recipe for Ray Data: on a local Ray, and what an actor of it does with blocks."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from peftcls import Classification, answers_frame, load_base, load_predictor, train_only
from peftcls.models.adapter_folder import save_adapter

pytest.importorskip("ray")
RECIPE = Path(__file__).parents[2] / "recipes" / "predict_on_ray.py"
SECONDS = 240
PROGRAM = """
import runpy, sys
import ray
ray.init(num_cpus=3, include_dashboard=False, object_store_memory=100_000_000)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("predict_on_ray", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    task = Classification(labels=("no", "yes"), max_length=16)
    model, tokenizer = load_base(bert, task)
    path = tmp_path_factory.mktemp("ray") / "run"
    save_adapter(path, train_only(model, task, "head"), task, tokenizer)
    return path


def test_blocks_get_the_answers_of_a_plain_prediction_beside_their_own_columns(recipe, folder):
    texts = [f"the patient recovered {'and ' * (number % 5)}" for number in range(40)]
    frame = pd.DataFrame({"text": texts, "number": [f"0{n}" for n in range(40)]})
    answers = recipe.Answers(str(folder))
    found = pd.concat([answers(frame[start : start + 16]) for start in range(0, 40, 16)])
    assert found[["text", "number"]].equals(frame)
    expected = answers_frame(load_predictor(folder).predict(texts))
    assert found["predicted_label"].tolist() == expected["label"].tolist()
    probabilities = found["predicted_probability"].to_numpy()
    assert probabilities == pytest.approx(expected["probability"].to_numpy(), abs=1e-5)
    assert pickle.loads(pickle.dumps(answers.predictor)).label_names == ("no", "yes")


@pytest.mark.parametrize("actors", [0, 3, 4])
def test_as_many_actors_as_cpus_are_refused(recipe, actors):
    recipe.check_actors(2, cpus=3)
    with pytest.raises(ValueError, match=rf"^actors={actors}: expected at least 1, and fewer than"):
        recipe.check_actors(actors, cpus=3)


@pytest.mark.slow
def test_a_local_ray_answers_in_order_as_a_plain_prediction(folder, tmp_path):
    rows = tmp_path / "rows.csv"
    texts = [f"the patient recovered {'and ' * (number % 5)}" for number in range(90)]
    pd.DataFrame({"text": texts, "number": [f"0{n}" for n in range(90)]}).to_csv(rows, index=False)
    answered = subprocess.run(
        [sys.executable, "-c", PROGRAM, RECIPE, folder, rows, "--actors", "2", "--out", "answers"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert answered.returncode == 0, answered.stderr[-3000:]
    found = pd.read_parquet(tmp_path / "answers")
    assert found["number"].tolist() == [f"0{n}" for n in range(90)]
    expected = answers_frame(load_predictor(folder).predict(texts))
    assert found["predicted_label"].tolist() == expected["label"].tolist()
    probabilities = found["predicted_probability"].to_numpy()
    assert probabilities == pytest.approx(expected["probability"].to_numpy(), abs=1e-5)
