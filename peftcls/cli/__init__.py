"""The `peftcls` command: its options, help and exit codes.

The work is done by the package's public functions. Modules that need a model library are imported
by the command that is run, so that help and shell completion come at once.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from peftcls.cli.option_names import in_options
from peftcls.cli.options import (
    FILE,
    FOLDER,
    METHODS,
    PARTS,
    POOLINGS,
    QUANTIZE,
    base_option,
    batch_option,
    json_option,
    label_names_option,
    label_option,
    max_length_option,
    max_new_tokens_option,
    metric_option,
    source_options,
    task_option,
    text_option,
)
from peftcls.cli.serve_options import serve_options
from peftcls.logs import show_messages

# Exit codes.
FAILED = 1
USAGE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    The codes are 0, 1 for wrong rows or settings, 2 for wrong usage, and 130 when interrupted.
    SIGTERM during a training or a service raises SystemExit with the code 143.
    """
    show_messages()
    try:
        return int(commands.main(arguments, prog_name="peftcls", standalone_mode=False) or 0)
    except click.UsageError as error:
        _with_suggestion(error).show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, `head` for example, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except click.ClickException as error:
        print(error.format_message(), file=sys.stderr)
        return FAILED
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        print(in_options(str(error), _command(arguments)), file=sys.stderr)
        return FAILED


def _command(arguments: Sequence[str] | None) -> click.Command | None:
    """The command that was run."""
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments:
        return None
    return commands.commands.get(arguments[0])


def _with_suggestion(error: click.UsageError) -> click.UsageError:
    """The error with the most similar choice; for commands and options click adds it already."""
    if not isinstance(error, click.BadParameter) or error.param is None:
        return error
    choice = error.param.type
    if not isinstance(choice, click.Choice):
        return error
    typed = error.message.partition("'")[2].partition("'")[0]
    similar = difflib.get_close_matches(typed, choice.choices, 1)
    if not similar:
        return error
    message = f"{error.message} Did you mean {similar[0]!r}?"
    return click.BadParameter(message, error.ctx, error.param)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="peftcls", message="%(prog)s %(version)s")
def commands() -> None:
    """Train small adapters beside language models, and use them, without writing Python.

    \b
    peftcls check messages.csv
    peftcls train messages.csv --out runs/spam
    peftcls predict runs/spam new.csv --out answers.csv
    peftcls evaluate runs/spam labelled.csv

    Exit codes: 0 done, 1 something is wrong with the rows or the settings (one sentence says
    what), 2 the command was mistyped, 130 interrupted with Ctrl-C, 143 ended by SIGTERM.
    Continue an interrupted training with --resume.
    """


@commands.command()
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
@metric_option
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


@commands.command()
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

    return 0 if check_files(**options) else FAILED


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.argument("file", type=str)
@click.option(
    "--out", type=FILE, required=True, help="The file to write: .csv, .tsv, .jsonl or .parquet."
)
@click.option("--probabilities", is_flag=True, help="A column with the probability of each label.")
@click.option("--resume", is_flag=True, help="Continue from the answers in OUT.part.")
@batch_option
@base_option
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


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.argument("file", type=str)
@metric_option
@label_names_option
@json_option
@batch_option
@base_option
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


@commands.command()
@click.argument("first", metavar="DIR", type=FOLDER)
@click.argument("second", metavar="DIR", type=FOLDER)
@click.argument("file", type=str)
@click.option("--score", help="The score that is compared; the task's own unless given.")
@metric_option
@label_names_option
@json_option
@batch_option
@base_option
@source_options
def compare(**options: Any) -> None:
    """Test whether one adapter is better than another on the labelled rows of FILE.

    The test is a paired bootstrap.

    \b
    peftcls compare runs/spam runs/spam_2 labelled.csv
    """
    from peftcls.cli.predicting import compare_folders

    compare_folders(**options)


@commands.command(name="try")
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.option("--context", type=FILE, help="For questions: a text file that holds the answers.")
@base_option
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


@commands.command()
@click.argument("directories", metavar="DIR [DIR ...]", nargs=-1, required=True, type=FOLDER)
@serve_options
@batch_option
@base_option
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


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@json_option
def show(**options: Any) -> None:
    """Describe an adapter folder, without loading its base.

    \b
    peftcls show runs/spam
    """
    from peftcls.cli.folders import show_folder

    show_folder(**options)


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.argument("out", type=FOLDER)
@base_option
def merge(**options: Any) -> None:
    """Merge the adapter in DIR into its base; OUT is a model that plain transformers loads.

    \b
    peftcls merge runs/spam runs/spam_merged
    """
    from peftcls.cli.folders import merge_folder

    merge_folder(**options)


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--onnx", is_flag=True, required=True, help="As ONNX; the only format so far.")
@click.option("--int8", is_flag=True, help="Hold the weights in 8 bits.")
@click.option("--check", metavar="FILE", help="Rows to compare answers on; needs no labels.")
@base_option
@source_options
def export(**options: Any) -> None:
    """Export the adapter in DIR with its base to OUT, for programs without PyTorch.

    Its answers are compared with those of the adapter before OUT is written.

    \b
    peftcls export runs/spam runs/spam_onnx --onnx
    peftcls export runs/spam runs/spam_int8 --onnx --int8 --check labelled.csv
    """
    from peftcls.cli.folders import export_folder

    export_folder(**options)


@commands.command()
@click.argument("directory", metavar="DIR", type=FOLDER)
@click.argument("repository", metavar="REPO")
@click.option("--private", is_flag=True, help="Let nobody else see it, if it is new.")
def push(**options: Any) -> None:
    """Upload the adapter in DIR, with its model card, to the hub as REPO (owner/name).

    \b
    peftcls push runs/spam my-name/spam
    """
    from peftcls.cli.folders import push_folder

    push_folder(**options)
