"""Answer a large table with a saved adapter on many processes or machines, with Ray Data.

    pip install 'peftcls[ray]'
    python recipes/predict_on_ray.py runs/papers unlabelled.parquet --out answers --actors 4

Each actor loads the adapter once and then answers blocks of rows. Rows keep their order and their
columns; the columns of the answer stand beside them. The folder, its base and the file have to be
where every machine finds them.
"""

import argparse
from typing import Any

import ray

from peftcls import answers_frame, load_predictor, read_rows

PREFIX = "predicted_"
BLOCK_ROWS = 512


class Answers:
    """Answers blocks of rows. An actor makes one of these, so it loads the adapter once."""

    def __init__(self, directory: str) -> None:
        self.predictor = load_predictor(directory)

    def __call__(self, frame: Any) -> Any:
        """A block, a pandas DataFrame, with the columns of its answers beside its own."""
        answers = answers_frame(self.predictor.predict(frame), index=frame.index)
        return frame.join(answers.add_prefix(PREFIX))


def answer_rows(rows: ray.data.Dataset, directory: str, *, actors: int) -> ray.data.Dataset:
    """The rows with their answers, in the same order, computed when they are asked for.

    Args:
        rows: with the columns of the adapter's task.
        directory: the adapter folder.
        actors: how many processes answer; each has a GPU where the cluster has GPUs.
    """
    resources = ray.cluster_resources()
    check_actors(actors, cpus=int(resources["CPU"]))
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    return rows.map_batches(
        Answers,
        fn_constructor_args=[directory],
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=BLOCK_ROWS,
        batch_format="pandas",
        num_gpus=1 if resources.get("GPU") else None,
    )


def check_actors(actors: int, *, cpus: int) -> None:
    """Raise ValueError if the actors took every CPU, and none were left to read the rows."""
    if not 0 < actors < cpus:
        raise ValueError(
            f"actors={actors}: expected at least 1, and fewer than the {cpus} CPUs of the cluster. "
            "Each actor takes one, and Ray needs another to read the rows; it would wait for ever."
        )


def read_file(file: str, *, blocks: int) -> ray.data.Dataset:
    """The rows of a file, in blocks that actors can share.

    Ray reads parquet files by itself, on all machines. Other files are read here, as
    `peftcls predict` reads them.
    """
    if file.endswith(".parquet"):
        return ray.data.read_parquet(file)
    return ray.data.from_pandas(read_rows(file).to_pandas()).repartition(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", help="the adapter folder")
    parser.add_argument("file", help="rows to answer")
    parser.add_argument("--out", required=True, help="a folder for parquet files with the answers")
    parser.add_argument("--actors", type=int, default=1, help="processes that answer (1)")
    options = parser.parse_args()
    rows = read_file(options.file, blocks=4 * options.actors)
    answer_rows(rows, options.directory, actors=options.actors).write_parquet(options.out)


if __name__ == "__main__":
    main()
