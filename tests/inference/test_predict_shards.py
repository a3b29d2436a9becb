"""A folder of shards is answered as one table, and an interrupted run of it is continued."""

import json

import pytest
from saved_adapters import TEXTS, saved

import peftcls
from peftcls.inference import answer_parts
from peftcls.inference.predict_file import predict_file


class Interrupted(peftcls.Predictor):
    """Stops at the third chunk."""

    def answer_part(self, table, start, end, **settings):
        if start == 20:
            raise KeyboardInterrupt
        return super().answer_part(table, start, end, **settings)


def test_shards_are_answered_as_one_table_and_continued_from_another_copy(
    bert, tmp_path, monkeypatch
):
    monkeypatch.setattr(answer_parts, "CHUNK_ROWS", 10)
    task = peftcls.Classification(labels=("no", "yes"), max_length=32)
    folder = saved(bert, tmp_path / "adapter", task)
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(3):
        texts = [f"{TEXTS[number % len(TEXTS)]} {shard} {number}" for number in range(15)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (shards / f"{shard}.jsonl").write_text("".join(lines))
    predictor = peftcls.load_predictor(folder)
    whole, out = tmp_path / "whole.csv", tmp_path / "cut.csv"
    predict_file(predictor, folder, shards, whole, cache_dir=tmp_path / "first")
    stopping = Interrupted(predictor.model, predictor.task, predictor.tokenizer)
    with pytest.raises(KeyboardInterrupt):
        predict_file(stopping, folder, shards, out, cache_dir=tmp_path / "second")
    count, _ = predict_file(
        predictor, folder, f"{shards}/*.jsonl", out, cache_dir=tmp_path / "third", resume=True
    )
    assert count == 45
    assert out.read_bytes() == whole.read_bytes()
    # Other rows are not continued with.
    with pytest.raises(KeyboardInterrupt):
        predict_file(stopping, folder, shards, out, cache_dir=tmp_path / "second")
    (shards / "2.jsonl").write_text('{"text": "another"}\n' * 15)
    with pytest.raises(ValueError, match="belongs to other rows"):
        predict_file(predictor, folder, shards, out, cache_dir=tmp_path / "third", resume=True)
