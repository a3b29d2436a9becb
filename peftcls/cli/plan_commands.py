"""The options and help of the command that plans memory before anything is loaded."""

from typing import Any

import click

from peftcls.cli.option_groups import GroupedCommand, data_option, model_option, training_option
from peftcls.cli.shared_options import TASKS, json_option
from peftcls.cli.train_commands import DTYPES


@click.command(cls=GroupedCommand, short_help="Plan memory and GPUs for a base.")
@click.argument("model", type=str)
@training_option(
    "--gpus",
    type=click.IntRange(min=1),
    help="How many GPUs the machine has.  [default: those of this machine]",
)
@training_option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Of each GPU.  [default: that of this machine's]",
)
@data_option(
    "--task",
    "kind",
    type=click.Choice(TASKS),
    default="classification",
    show_default=True,
    help="Decides the head and the logits.",
)
@data_option("--max-length", type=click.IntRange(min=1), help="Tokens of a row.")
@data_option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Of an answer after a prompt.  [default: 128; 96 for keywords]",
)
@model_option(
    "--rank",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Of the adapter's matrices.",
)
@model_option(
    "--targets",
    metavar="NAMES",
    help="attention, all-linear, or names with commas: q_proj,v_proj.  [default: attention]",
)
@model_option("--layers", metavar="NUMBERS", help="Layers with an adapter, from 0.  [default: all]")
@model_option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="bfloat16",
    show_default=True,
    help="Of the frozen weights.",
)
@training_option(
    "--micro-batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens in memory at once.  [default: 32768, or as many as fit]",
)
@training_option(
    "--gradient-checkpointing", is_flag=True, help="Plan with it; tried too where nothing fits."
)
@training_option(
    "--tokens", type=click.IntRange(min=1), help="Of the whole training, to estimate its time."
)
@training_option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="Of a GPU in matrix products.  [default: measured on this machine]",
)
@json_option
def plan(**options: Any) -> None:
    """Say what a LoRA training of MODEL takes on each GPU, and which way to start it fits.

    Only its config.json is read: no weights are loaded, and no GPU is needed.

    \b
    peftcls plan meta-llama/Llama-3.1-70B --gpus 8 --gpu-memory 80
    peftcls plan minilm --gpus 1 --gpu-memory 24 --tokens 50000000 --tflops 100
    """
    from peftcls.cli.planning import print_plan

    print_plan(**options)
