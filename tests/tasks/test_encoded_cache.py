"""Tokenized tables are kept where that is asked for, found again, and never found half written."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from conftest import word_piece_tokenizer
from small_runs import build, weights

from peftcls import Classification, cli, read_rows
from peftcls.data.reading import as_dataset
from peftcls.data.scratch import scratch_folder
from peftcls.tasks.encoding import encode_table

TOKENIZER = word_piece_tokenizer()
WORDS = ("patient", "drug", "bank", "galaxy")


class Counted(Classification):
    """Counts the rows that are tokenized."""

    tokenized = 0

    def encode_many(self, rows, tokenizer, *, with_target):
        Counted.tokenized += len(rows)
        return super().encode_many(rows, tokenizer, with_target=with_target)


@pytest.fixture
def shards(tmp_path):
    """A folder of two parquet files of five rows each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        write_shard(folder / f"{number}.parquet", [f"the {word} of {number}" for word in WORDS])
    return folder


def write_shard(file, texts, time=None):
    rows = {"text": texts, "label": ["yes", "no"] * (len(texts) // 2)}
    datasets.Dataset.from_dict(rows).to_parquet(str(file))
    if time is not None:
        os.utime(file, ns=(time, time))


def tokenized(shards, cache, tokenizer=None, **settings):
    """How many rows are tokenized to encode the shards, and the features."""
    rows = read_rows(shards, cache_dir=cache)
    task = Counted(labels=("no", "yes"), **{"max_length": 16, **settings})
    before = Counted.tokenized
    table = encode_table(task, rows, tokenizer or TOKENIZER, "base", cache_dir=cache)
    return Counted.tokenized - before, table.features.to_list()


def test_a_second_run_on_the_same_files_tokenizes_nothing(shards, tmp_path):
    count, features = tokenized(shards, tmp_path / "cache")
    assert count == 8
    assert tokenized(shards, tmp_path / "cache") == (0, features)
    # Files of the same content are the same, wherever they are.
    moved = shards.rename(tmp_path / "moved")
    assert tokenized(moved, tmp_path / "cache") == (0, features)


def test_a_changed_byte_or_setting_tokenizes_again(shards, tmp_path):
    cache = tmp_path / "cache"
    tokenized(shards, cache)
    assert tokenized(shards, cache, max_length=8)[0] == 8
    other = word_piece_tokenizer()
    other.add_tokens(["galaxy"])
    assert tokenized(shards, cache, other)[0] == 8
    file = shards / "1.parquet"
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    write_shard(file, [f"the {word} of 3" for word in WORDS], time)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (size, time)
    count, features = tokenized(shards, cache)
    assert count == 8
    assert tokenized(shards, tmp_path / "another") == (8, features)


def test_features_that_were_cut_off_are_not_used(shards, tmp_path):
    cache = tmp_path / "cache"
    _, features = tokenized(shards, cache)
    (file,) = cache.glob("tokens-*/rows.arrow")
    whole = file.read_bytes()
    # As a damaged disk might leave it.
    for end in (len(whole) // 2, len(whole) - 16, 0):
        file.write_bytes(whole[:end])
        assert tokenized(shards, cache)[1] == features
        assert file.read_bytes() == whole


def test_features_are_removed_at_the_end_unless_a_folder_is_given(shards, tmp_path):
    rows = read_rows(shards, cache_dir=tmp_path / "cache")
    task = Classification(labels=("no", "yes"), max_length=16)
    table = encode_table(task, rows, TOKENIZER, "base")
    (kept,) = table.features.cache_files
    assert scratch_folder() in Path(kept["filename"]).parents
    in_memory = encode_table(task, as_dataset(rows.to_list()), TOKENIZER, "base")
    assert in_memory.features.cache_files == []
    assert in_memory.features.to_list() == table.features.to_list()


def test_a_run_with_a_cache_trains_the_same_weights(bert, text_rows, tmp_path):
    rows = as_dataset(text_rows)
    build(bert, tmp_path / "plain", text_rows, epochs=1).fit(rows)
    for name in ("first", "second"):
        trainer = build(bert, tmp_path / name, text_rows, epochs=1, cache_dir=tmp_path / "cache")
        trainer.fit(rows)
        found, expected = weights(tmp_path / name), weights(tmp_path / "plain")
        assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)
    assert len(list((tmp_path / "cache").glob("tokens-*/rows.arrow"))) == 1


def test_the_command_keeps_copies_where_it_is_told(tmp_path, monkeypatch):
    rows = [f"message {n} about the {WORDS[n % 4]},{'ab'[n % 2]}" for n in range(40)]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    counts = []
    encode_many = Classification.encode_many

    def counted(task, rows, tokenizer, *, with_target):
        counts[-1] += len(rows)
        return encode_many(task, rows, tokenizer, with_target=with_target)

    monkeypatch.setattr(Classification, "encode_many", counted)
    command = ["train", str(file), "--out", str(tmp_path / "run"), "--dry-run"]
    for options in ([], ["--cache", str(tmp_path / "cache")], ["--cache", str(tmp_path / "cache")]):
        counts.append(0)
        assert cli.main([*command, *options]) == 0
    assert counts[0] == counts[1] > 0
    assert counts[2] == 0
    assert len(list((tmp_path / "cache").glob("tokens-*/rows.arrow"))) == 3


WRITER = """
import os, sys, time
from pathlib import Path
import datasets
from peftcls.data.scratch import scratch_folder
from peftcls.data.table_cache import cached_table

folder, log, dies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies"

def write(file):
    with log.open("a") as lines:
        lines.write("written\\n")
    table = datasets.Dataset.from_dict({"number": list(range(10))})
    if dies:
        file.write_bytes(b"half of it")
        os._exit(9)
    time.sleep(0.3)
    table.map(lambda row: row, cache_file_name=str(file))

datasets.disable_progress_bars()
print(scratch_folder(), sum(cached_table(folder, 10, write)["number"]))
"""


def started(tmp_path, fate, rank):
    """A process as a launcher of two starts it."""
    launched = {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": "29511"}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "table", tmp_path / "log", fate],
        env={**os.environ, **launched, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_one_writes_and_one_that_is_killed_leaves_nothing(tmp_path):
    killed = started(tmp_path, "dies", 1)
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    assert not (tmp_path / "table" / "rows.arrow").exists()
    both = [started(tmp_path, "lives", rank) for rank in range(2)]
    printed = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [total for _, total in printed] == ["45", "45"]
    # The killed process has begun; of the others only one has.
    assert (tmp_path / "log").read_text().count("written") == 2
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["lock", "rows.arrow"]
    # They share a folder, which is gone when both have ended, whichever was first.
    (folder,) = {folder for folder, _ in printed}
    assert folder.startswith(str(tmp_path / "cache"))
    assert not Path(folder).exists()
    late = started(tmp_path, "lives", 1)
    folder, _ = late.communicate(timeout=60)[0].split()
    assert not Path(folder).exists()
