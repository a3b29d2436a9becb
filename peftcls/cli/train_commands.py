"""The options and help of `peftcls train` and `check`."""

from typing import Any

import click

from peftcls.cli.shared_options import (
    FOLDER,
    json_option,
    label_option,
    max_length_option,
    max_new_tokens_option,
    source_options,
    task_option,
    text_option,
)

METHODS = ("lora", "lora+", "dora", "rslora", "pissa", "adalora", "ia3")
PARTS = ("head", "last_block", "last_two_blocks", "all")
QUANTIZE = ("8bit", "4bit")
POOLINGS = ("cls", "first", "last", "mean")


@click.command(short_help="Train an adapter on a table of texts.")
@click.argument("file", type=str)
@click.option("--out", type=FOLDER, required=True, help="The adapter folder to write.")
@task_option
@text_option
@label_option
@click.option(
    "--labels",
    metavar="A,B,C",
    help="The label names in order; makes the answers of --task instruction one of them.",
)
@click.option(
    "--prompt",
    metavar="TEXT",
    help="The prompt of instruction and keywords; {input} is the text, {name} any column.",
)
@click.option(
    "--class-weight",
    type=click.Choice(["balanced"]),
    help="Make rare labels count as much as common ones.",
)
@click.option(
    "--valid",
    metavar="FILE",
    help="Rows that decide which epoch was best; 15 % of FILE, put aside, unless given.",
)
@click.option(
    "--test",
    metavar="FILE",
    help="Rows for the table of scores; 15 % of FILE, put aside, unless given.",
)
@click.option(
    "--model",
    default="demo",
    show_default=True,
    help="Base model: demo, minilm, smollm2, a folder, or a name on the hub.",
)
@click.option("--quantize", type=click.Choice(QUANTIZE), help="Hold the base in 8 or 4 bits.")
@click.option(
    "--method", type=click.Choice(METHODS), help="How the adapter learns.  [default: lora]"
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="Of the adapter's matrices.  [default: 16]"
)
@click.option(
    "--targets",
    metavar="NAMES",
    help="attention, all-linear, or names with commas: q_proj,v_proj.  [default: attention]",
)
@click.option(
    "--part",
    type=click.Choice(PARTS),
    help="Train a part of the model itself instead of an adapter.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Passes over the training rows.  [default: 4; more for a small table]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Rows of a step, over all processes.  [default: 16; 8 with labels after a prompt]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Its peak.  [default: 1e-3 or 2e-3, by the kind of work and the number of rows; "
    "5e-5 with --part all]",
)
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="What a head reads of a text.  [default: chosen by the base]",
)
@click.option(
    "--search",
    type=click.IntRange(min=2),
    metavar="N",
    help="Try N settings on the validation rows first, and train with the best ones.",
)
@max_length_option
@max_new_tokens_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the rows put aside, new weights and order.",
)
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that --out holds.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Two steps on the longest rows: memory, time, what is trained; nothing is written.",
)
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="tensorboard, wandb, mlflow, trackio: what is installed.",
)
@click.option(
    "--push-to-hub", metavar="REPO", help="Upload the folder to the hub at the end, as owner/name."
)
@source_options
def train(**options: Any) -> None:
    """Train an adapter on the rows of FILE (csv, tsv, json, jsonl, parquet) and save its folder.

    The columns are guessed where only one guess makes sense, and the guess is printed. At the end
    come the scores on the test rows, with 95 % intervals, beside systems without a transformer.

    \b
    peftcls train messages.csv --out runs/spam
    peftcls train papers.csv --text title --text abstract --label label --out runs/papers
    peftcls train squad.json --model FacebookAI/roberta-base --out runs/qa
    """
    from peftcls.cli.training import TrainOptions, train_file

    train_file(TrainOptions(**options))


@click.command(short_help="Find errors in the rows before training.")
@click.argument("file", type=str)
@task_option
@text_option
@label_option
@click.option("--labels", metavar="A,B,C", help="The label names in order.")
@click.option("--prompt", metavar="TEXT", help="The prompt of instruction and keywords.")
@click.option("--valid", metavar="FILE", help="Validation rows, looked at beside the others.")
@click.option("--test", metavar="FILE", help="Test rows, looked at beside the others.")
@click.option(
    "--model", help="Base model whose tokens are counted; lengths are not looked at without."
)
@max_length_option
@max_new_tokens_option
@source_options
@json_option
def check(**options: Any) -> int:
    """List errors and oddities in the rows of FILE before training; exit code 1 for an error.

    \b
    peftcls check messages.csv --test test.csv --model demo
    """
    from peftcls.cli.checking import check_files

    return 0 if check_files(**options) else 1
