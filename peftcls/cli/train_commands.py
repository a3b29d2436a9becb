"""The options and help of the commands that read rows to train on: check, train and learn-on."""

from typing import Any

import click

from peftcls.cli.option_groups import (
    GroupedCommand,
    collected,
    data_option,
    model_option,
    output_option,
    training_option,
)
from peftcls.cli.shared_options import (
    FOLDER,
    SHARD_HELP,
    directory_argument,
    json_option,
    label_names_option,
    label_option,
    max_length_option,
    max_new_tokens_option,
    metric_option,
    separator_option,
    skip_option,
    source_options,
    task_option,
    text_option,
    training_device_option,
    writable_folder,
)
from peftcls.tasks.instruction_settings import MAX_SAMPLES

METHODS = ("lora", "lora+", "dora", "rslora", "pissa", "adalora", "ia3")
PARTS = ("head", "last_block", "last_two_blocks", "all")
QUANTIZE = ("8bit", "4bit")
DTYPES = ("float32", "bfloat16", "float16")
POOLINGS = ("cls", "first", "last", "mean", "compare")
LOSSES = ("cross_entropy", "bce", "focal")
LONG_TEXTS = ("truncate", "windows")

labels_option = data_option(
    "--labels",
    metavar="A,B,C",
    help="The label names in order; makes the answers of --task instruction one of them.",
)
prompt_option = data_option(
    "--prompt",
    metavar="TEXT",
    help="The prompt of instruction and keywords; {input} is the text, {name} any column.",
)
valid_option = data_option(
    "--valid",
    metavar="FILE",
    help="Rows that decide which epoch was best; unless given, 15 % of FILE, put aside (100,000 "
    "rows at most).",
)
test_option = data_option(
    "--test",
    metavar="FILE",
    help="Rows for the table of scores; unless given, 15 % of FILE, put aside (100,000 rows at "
    "most).",
)

group_option = data_option(
    "--group",
    metavar="COLUMN",
    help="Rows with the same value in it, such as a customer's, stay on one side of each split.",
)

weight_option = data_option(
    "--weight",
    metavar="COLUMN",
    help="How much each row counts in training, as a number of at least 0.",
)

decimal_option = data_option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="What stands before the decimals of the numbers of --task regression.  [default: .]",
)
task_settings = collected(
    "task_settings",
    labels_option,
    separator_option,
    prompt_option,
    max_length_option,
    max_new_tokens_option,
    data_option(
        "--samples",
        type=click.IntRange(1, MAX_SAMPLES),
        help="Lists of keywords that are drawn for a row; at least two have to agree on a keyword. "
        "1 is faster.  [default: 8]",
    ),
    data_option(
        "--long-text",
        type=click.Choice(LONG_TEXTS),
        help="Whether a longer text loses its end or is read in windows.  [default: truncate]",
    ),
    training_option(
        "--loss", type=click.Choice(LOSSES), help="Of labels.  [default: cross_entropy]"
    ),
    training_option(
        "--label-smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        help="The share of the target that all labels get evenly.  [default: 0]",
    ),
    training_option(
        "--class-weight",
        type=click.Choice(["balanced"]),
        help="Make rare labels count as much as common ones.",
    ),
    training_option(
        "--sampling",
        type=click.Choice(["balanced"]),
        help="Draw as many rows of each label in an epoch.",
    ),
    weight_option,
    decimal_option,
    model_option(
        "--pooling",
        type=click.Choice(POOLINGS),
        help="What a head reads of a text.  [default: chosen by the base]",
    ),
)
adapter_settings = collected(
    "adapter",
    model_option(
        "--method", type=click.Choice(METHODS), help="How the adapter learns.  [default: lora]"
    ),
    model_option(
        "--rank", type=click.IntRange(min=1), help="Of the adapter's matrices.  [default: 16]"
    ),
    model_option(
        "--alpha",
        type=click.FloatRange(min=0, min_open=True),
        help="The update is scaled by alpha / rank.  [default: twice the rank]",
    ),
    model_option(
        "--dropout",
        type=click.FloatRange(0, 1, max_open=True),
        help="Of the adapter's and the head's input.  [default: 0]",
    ),
    model_option(
        "--targets",
        metavar="NAMES",
        help="attention, all-linear, or names with commas: q_proj,v_proj.  [default: attention]",
    ),
    model_option(
        "--layers",
        metavar="NUMBERS",
        help="Layers with an adapter, from 0; -2,-1 are the last two.  [default: all]",
    ),
)
loop_settings = collected(
    "config",
    training_option(
        "--epochs",
        type=click.IntRange(min=1),
        help="Passes over the training rows.  [default: 4; more for a small table]",
    ),
    training_option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Rows of a step, over all processes.  [default: 16; 8 with labels after a prompt]",
    ),
    training_option(
        "--learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        help="Its peak.  [default: 1e-3 or 2e-3, by the kind of work and the number of rows; "
        "5e-5 with --part all]",
    ),
    training_option(
        "--warmup",
        type=click.FloatRange(0, 1, max_open=True),
        help="The share of the steps in which the rate rises.  [default: 0.06]",
    ),
    training_option(
        "--weight-decay", type=click.FloatRange(min=0), help="Of matrices.  [default: 0.01]"
    ),
    training_option(
        "--patience",
        type=click.IntRange(min=1),
        metavar="N",
        help="Stop after N evaluations without a better score.",
    ),
    training_option(
        "--monitor",
        metavar="SCORE",
        help="The score that decides which step is best.  [default: the task's own]",
    ),
    metric_option,
    training_option(
        "--micro-batch-tokens",
        type=click.IntRange(min=1),
        help="At most this many in memory at once; changes the time, not the result.  "
        "[default: 2048 on a CPU, 32768 on a GPU]",
    ),
    training_option(
        "--gradient-checkpointing",
        is_flag=True,
        help="Less memory, about a third more time, the same weights.",
    ),
    training_option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of the rows put aside, new weights and order.",
    ),
    output_option(
        "--tracker",
        "trackers",
        multiple=True,
        metavar="NAME",
        help="tensorboard, wandb, mlflow, trackio: what is installed.",
    ),
)
calibrate_option = training_option(
    "--calibrate",
    is_flag=True,
    help="Fit temperature and thresholds on the validation rows at the end.",
)
out_option = output_option(
    "--out",
    type=FOLDER,
    required=True,
    callback=writable_folder,
    help="The adapter folder to write.",
)
resume_option = output_option(
    "--resume", is_flag=True, help="Continue from the newest checkpoint in --out."
)
overwrite_option = output_option(
    "--overwrite", is_flag=True, help="Replace the adapter that --out holds."
)


@click.command(cls=GroupedCommand, short_help="Find errors in the rows before training.")
@click.argument("file", type=str)
@task_option
@text_option
@label_option
@labels_option
@label_names_option
@separator_option
@prompt_option
@data_option("--valid", metavar="FILE", help="Validation rows, looked at beside the others.")
@data_option("--test", metavar="FILE", help="Test rows, looked at beside the others.")
@group_option
@weight_option
@decimal_option
@max_length_option
@max_new_tokens_option
@source_options
@model_option("--model", help="Base model whose tokens are counted; words are counted without it.")
@json_option
def check(**options: Any) -> int:
    """List errors and oddities in the rows of FILE before training; exit code 1 for an error.

    \b
    peftcls check messages.csv --test test.csv --model demo
    """
    from peftcls.cli.checking import check_files

    return 0 if check_files(**options) else 1


@click.command(cls=GroupedCommand, short_help="Train an adapter on a table of texts.")
@click.argument("file", type=str)
@task_option
@text_option
@label_option
@label_names_option
@valid_option
@test_option
@group_option
@skip_option
@source_options
@model_option(
    "--model",
    help="Base model: minilm, smollm2, a folder, or a name on the hub.  [default: demo, a tiny "
    "one for trying the command]",
)
@model_option("--quantize", type=click.Choice(QUANTIZE), help="Hold the base in 8 or 4 bits.")
@model_option("--shard", is_flag=True, default=None, help=SHARD_HELP)
@training_device_option
@model_option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Of the frozen weights.  [default: the fastest on this machine]",
)
@model_option(
    "--part",
    type=click.Choice(PARTS),
    help="Train a part of the model itself instead of an adapter.",
)
@model_option(
    "--start",
    type=FOLDER,
    metavar="DIR",
    help="An adapter that another program wrote with PEFT, to train further.",
)
@adapter_settings
@task_settings
@loop_settings
@training_option(
    "--search",
    type=click.IntRange(min=2),
    metavar="N",
    help="Try N settings on the validation rows first, and train with the best ones.",
)
@training_option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Score by cross-validation instead of rows put aside, then train on all rows.",
)
@training_option(
    "--seeds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Run with N seeds and print the mean; --out holds the run of --seed.",
)
@calibrate_option
@out_option
@resume_option
@overwrite_option
@output_option(
    "--dry-run",
    is_flag=True,
    help="Two steps on the longest rows: memory, time, what is trained; nothing is written.",
)
@output_option(
    "--push-to-hub", metavar="REPO", help="Upload the folder to the hub at the end, as owner/name."
)
def train(**options: Any) -> None:
    """Train an adapter on the rows of FILE and save its folder.

    FILE is csv, tsv, json, jsonl, parquet or xlsx, a folder of such files, or a data set on the
    hub. The columns are guessed where only one guess makes sense, and the guess is printed. At the
    end come the scores on the test rows, with 95 % intervals, beside systems without a transformer.

    \b
    peftcls train messages.csv --out runs/spam
    peftcls train papers.csv --text title --text abstract --label label --out runs/papers
    peftcls train squad.json --model FacebookAI/roberta-base --out runs/qa
    """
    from peftcls.cli.training import TrainOptions, train_file

    train_file(TrainOptions(**options))


@click.command(name="learn-on", cls=GroupedCommand, short_help="Continue an adapter on new rows.")
@directory_argument
@click.argument("file", type=str)
@data_option(
    "--replay",
    metavar="FILE",
    help="Rows of the first training, of which a sample is trained on too, against forgetting.",
)
@data_option(
    "--replay-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="The part of the training rows that is old.",
)
@label_names_option
@valid_option
@test_option
@group_option
@skip_option
@source_options
@model_option("--base", metavar="MODEL", help="Where the base model is now, if it moved.")
@training_device_option
@loop_settings
@calibrate_option
@out_option
@resume_option
@overwrite_option
def learn_on(**options: Any) -> None:
    """Train the adapter in DIR further on the rows of FILE; the new adapter goes to --out.

    FILE needs the columns that DIR was trained on. New labels are added to the old ones. The scores
    before and after are printed, also on the rows of --replay, which shows what was forgotten.

    \b
    peftcls learn-on runs/spam june.csv --replay messages.csv --out runs/spam_june
    """
    from peftcls.cli.continuing import LearnOnOptions, learn_on_file

    learn_on_file(LearnOnOptions(**options))
