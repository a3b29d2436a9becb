"""The recipe for Ray Data: what an actor does with blocks, and how many actors there may be.

A local Ray takes longer to start than a test may; docs/cluster.md says how the whole was compared.
"""

import importlib.util
import pickle
from pathlib import Path

import pandas as pd
import pytest

from peftcls import Classification, answers_frame, load_base, load_predictor, train_only
from peftcls.models.adapter_folder import save_adapter

pytest.importorskip("ray")
RECIPE = Path(__file__).parents[2] / "recipes" / "predict_on_ray.py"


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
