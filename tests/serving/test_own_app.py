"""A predictor in a FastAPI application of one's own, in the thread pool and on the event loop."""

import asyncio
import dataclasses
import random
import threading

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from saved_adapters import TEXTS, check_same_answer
from served_folders import running, save_all

from peftcls import Answer, load_predictor

CLIENTS = 6
REQUESTS = 200
TOLERANCE = 1e-6


class Texts(BaseModel):
    texts: list[str]


def own_app(predictor):
    """What a user would write: one predictor, and endpoints of both kinds."""
    app = FastAPI()

    @app.post("/in_a_thread")
    def in_a_thread(asked: Texts):
        return [dataclasses.asdict(answer) for answer in predictor.predict(asked.texts)]

    @app.post("/on_the_loop")
    async def on_the_loop(asked: Texts):
        return [dataclasses.asdict(answer) for answer in predictor.predict(asked.texts)]

    @app.post("/beside_the_loop")
    async def beside_the_loop(asked: Texts):
        answers = await asyncio.to_thread(predictor.predict, asked.texts)
        return [dataclasses.asdict(answer) for answer in answers]

    return app


def as_answer(fields):
    return Answer(**{**fields, "n_best": tuple(fields["n_best"])})


def ask(address, number, expected, paths, outcomes):
    """Send requests one after another, to the paths in turn, and compare all answers."""
    chooser = random.Random(number)
    with httpx2.Client(base_url=address, timeout=60) as client:
        for turn in range(REQUESTS):
            start = chooser.randrange(len(TEXTS))
            texts = TEXTS[start : start + 1 + turn % 2]
            path = paths[(number + turn) % len(paths)]
            response = client.post(path, json={"texts": texts})
            try:
                assert response.status_code == 200, response.text
                for text, fields in zip(texts, response.json(), strict=True):
                    check_same_answer(as_answer(fields), expected[text], TOLERANCE)
            except AssertionError as error:
                outcomes.append(error)
            else:
                outcomes.append("right")


@pytest.mark.slow
@pytest.mark.parametrize("paths", [("/in_a_thread",), ("/on_the_loop", "/beside_the_loop")])
def test_one_predictor_in_ones_own_application_answers_as_single_calls_do(paths, bert, tmp_path):
    (folder,) = save_all(bert, tmp_path, ("spam",))
    alone = load_predictor(folder)
    expected = {text: alone.predict([text])[0] for text in TEXTS}
    outcomes = []
    with running(own_app(load_predictor(folder))) as address:
        clients = [
            threading.Thread(target=ask, args=(address, number, expected, paths, outcomes))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert outcomes == ["right"] * CLIENTS * REQUESTS
