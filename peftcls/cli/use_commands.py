"""The options and help of the commands that use an adapter, from predict to serve."""

from typing import Any

import click

from peftcls.cli.serve_options import serve_options
from peftcls.cli.shared_options import (
    FILE,
    FOLDER,
    base_option,
    batch_option,
    device_option,
    directory_argument,
    existing_folder,
    int8_option,
    json_option,
    label_names_option,
    metric_option,
    shard_option,
    skip_option,
    source_options,
)


@click.command(short_help="Answer every row of a file.")
@directory_argument
@click.argument("file", type=str)
@click.option(
    "--out", type=FILE, required=True, help="The file to write: .csv, .tsv, .jsonl or .parquet."
)
@click.option("--probabilities", is_flag=True, help="A column with the probability of each label.")
@click.option("--resume", is_flag=True, help="Continue from the answers in OUT.part.")
@skip_option
@batch_option
@base_option
@device_option
@int8_option
@shard_option
@source_options
def predict(**options: Any) -> None:
    """Answer every row of FILE with the adapter in DIR; the answers are added as new columns.

    Where the model is too unsure to give a label, the label is empty.

    \b
    peftcls predict runs/spam new.csv --out answers.csv
    peftcls predict runs/spam new.parquet --out answers.jsonl --probabilities --resume
    torchrun --standalone --nproc-per-node 2 -m peftcls predict runs/spam new.csv --out answers.csv
    """
    from peftcls.cli.predicting import predict_rows

    predict_rows(**options)


@click.command(short_help="Score an adapter on labelled rows.")
@directory_argument
@click.argument("file", type=str)
@metric_option
@label_names_option
@skip_option
@json_option
@batch_option
@base_option
@device_option
@int8_option
@shard_option
@source_options
def evaluate(**options: Any) -> None:
    """Score the adapter in DIR on the labelled rows of FILE, overall and for each label.

    Scores have 95 % intervals.

    \b
    peftcls evaluate runs/spam labelled.csv
    peftcls evaluate runs/spam labelled.csv --json > scores.json
    """
    from peftcls.cli.predicting import evaluate_rows

    evaluate_rows(**options)


@click.command(short_help="Say which of two adapters is better.")
@click.argument("first", metavar="DIR", type=FOLDER, callback=existing_folder)
@click.argument("second", metavar="DIR", type=FOLDER, callback=existing_folder)
@click.argument("file", type=str)
@click.option("--score", help="The score that is compared; the task's own unless given.")
@metric_option
@label_names_option
@json_option
@batch_option
@base_option
@device_option
@source_options
def compare(**options: Any) -> None:
    """Test whether one adapter is better than another on the labelled rows of FILE.

    The test is a paired bootstrap.

    \b
    peftcls compare runs/spam runs/spam_2 labelled.csv
    """
    from peftcls.cli.predicting import compare_folders

    compare_folders(**options)


@click.command(name="try", short_help="Answer what you type.")
@directory_argument
@click.option("--context", type=FILE, help="For questions: a text file that holds the answers.")
@base_option
@device_option
def try_out(**options: Any) -> None:
    """Type a text and see the answer; an empty line ends it. Lines can also be piped in.

    A row with two texts, such as a pair, is two lines, or one line with a tab between the texts.

    \b
    peftcls try runs/spam
    peftcls try runs/qa --context leaflet.txt
    echo "You have won a prize" | peftcls try runs/spam
    """
    from peftcls.cli.predicting import try_texts

    try_texts(**options)


@click.command(short_help="Answer requests over HTTP.")
@click.argument("directories", metavar="DIR [DIR ...]", nargs=-1, required=True, type=FOLDER)
@serve_options
@batch_option
@base_option
@device_option
def serve(**options: Any) -> None:
    """Answer requests over HTTP with the adapters in one DIR or several, until Ctrl-C or SIGTERM.

    Requests that wait share a forward pass. Adapters on one base share it in memory. A browser
    shows a page to try texts. It needs pip install 'peftcls[serve]'.

    \b
    peftcls serve runs/spam runs/topics
    curl localhost:8000/predict --json '{"texts": ["See you at lunch?"], "adapter": "spam"}'
    """
    from peftcls.cli.serving import serve_folders

    serve_folders(**options)
