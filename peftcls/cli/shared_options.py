"""Options that several commands have, and the check that the files they name exist."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from peftcls.cli.option_groups import data_option, model_option, training_option
from peftcls.logs import show_messages

TASKS = ("classification", "pair", "multi-label", "regression", "qa", "instruction", "keywords")

METRICS = (
    "average_precision_score",
    "balanced_accuracy_score",
    "cohen_kappa_score",
    "explained_variance_score",
    "f1_weighted",
    "hamming_loss",
    "jaccard_samples",
    "matthews_corrcoef",
    "max_error",
    "mean_absolute_error",
    "median_absolute_error",
    "precision_macro",
    "r2_score",
    "recall_macro",
    "roc_auc_score",
)

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def existing_folder(_: click.Context, __: click.Parameter, directory: Path) -> Path:
    """Check that an argument is an adapter folder, before a model library is imported."""
    from peftcls.models.adapter_manifest import find_manifest

    find_manifest(directory)
    return directory


def writable_folder(_: click.Context, __: click.Parameter, folder: Path) -> Path:
    """Check that a folder can be written to, before a model library is imported."""
    from peftcls.data.output_folder import check_output_dir

    check_output_dir(folder)
    return folder


def _training_device(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """Settle the device of a training before PyTorch is imported, until the command ends."""
    from peftcls.cli.training_device import see_only

    if name is not None:
        context.call_on_close(see_only(name))


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say how FILE is read, as one argument `source`."""

    @data_option(
        "--encoding",
        metavar="NAME",
        help="Of text files that are not UTF-8, for example latin-1 or cp1252.",
    )
    @data_option(
        "--columns",
        metavar="A,B,C",
        help="The names of the columns, where a csv or tsv file has no line with them.",
    )
    @data_option(
        "--map",
        "column_map",
        multiple=True,
        metavar="NEW=OLD",
        help="Read the column OLD as NEW; may be repeated. Of several files, one that has NEW and "
        "not OLD stays as it is.",
    )
    @data_option("--split", metavar="NAME", help="Of a data set, or a sheet of a workbook.")
    @data_option(
        "--cache",
        type=FOLDER,
        help="Keep copies of files and tokenized rows there for further runs; remove it to clear "
        "it.  [default: they are removed at the end]",
    )
    @functools.wraps(command)
    def with_source(
        *,
        encoding: str | None,
        columns: str | None,
        split: str | None,
        column_map: tuple[str, ...],
        cache: Path | None,
        **options: Any,
    ) -> Any:
        from peftcls.cli.sources import Source
        from peftcls.data.reading import check_source

        # Before a model library is imported, which takes seconds.
        files = [options.get(name) for name in ("file", "valid", "test", "replay")]
        given = [file for file in files if file is not None]
        for file in given:
            check_source(file)
        several = len(given) > 1
        source = Source(encoding, columns, split, column_map, cache, several)
        return command(source=source, **options)

    return with_source


# Arguments and options that several commands have.
directory_argument = click.argument(
    "directory", metavar="DIR", type=FOLDER, callback=existing_folder
)
task_option = data_option(
    "--task", "kind", type=click.Choice(TASKS), help="Guessed from the columns unless given."
)
text_option = data_option(
    "--text",
    multiple=True,
    metavar="COLUMN",
    help="The text's column; given twice, a pair (for qa question and context).",
)
label_option = data_option(
    "--label",
    metavar="COLUMN",
    help="The column with what is learnt: label, number, answer or keywords. Several, A,B,C, are "
    "one for each label, with 0 or 1 in them.",
)
max_length_option = data_option(
    "--max-length", type=click.IntRange(min=1), help="Tokens that are read at once."
)
max_new_tokens_option = data_option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Of an answer after a prompt.  [default: 128; 96 for keywords]",
)
base_option = click.option(
    "--base", metavar="MODEL", help="Where the base model is now, if it moved."
)
DEVICE_HELP = "Where to compute: cpu, cuda, cuda:1, mps.  [default: a GPU if any]"
device_option = click.option("--device", metavar="NAME", help=DEVICE_HELP)
training_device_option = model_option(
    "--device", metavar="NAME", callback=_training_device, expose_value=False, help=DEVICE_HELP
)
int8_option = click.option(
    "--int8",
    is_flag=True,
    help="Answer on the processor in 8-bit integers: faster, and probabilities move a little.",
)
SHARD_HELP = "Hold the base in shares, one in each process that torchrun has started."
shard_option = click.option("--shard", is_flag=True, default=None, help=SHARD_HELP)
batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), help="At most this many rows at once."
)
metric_option = training_option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(METRICS),
    metavar="NAME",
    help=f"A score of scikit-learn beside the task's own; may be repeated: {', '.join(METRICS)}.",
)
label_names_option = data_option(
    "--label-names",
    metavar="A=B,C=D",
    help="Names of the labels that FILE has: 0=ham,1=spam.",
)
skip_option = data_option(
    "--skip-bad-rows",
    type=FILE,
    metavar="FILE",
    help="Leave out rows with errors, and write them to FILE (.csv or .jsonl) with the reasons.",
)
separator_option = data_option(
    "--label-separator",
    "separator",
    metavar="TEXT",
    help='Between several labels or keywords in one cell, such as ","; ";" unless given.',
)


def _messages_apart(_: click.Context, __: click.Parameter, as_json: bool) -> bool:
    """Keep messages out of what another program reads."""
    if as_json:
        show_messages(on_stderr=True)
    return as_json


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_messages_apart,
    help="Print JSON for another program; messages go to the error output.",
)
