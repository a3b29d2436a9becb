"""The options and help of the commands for an adapter folder: show, merge, export and push."""

from typing import Any

import click

from peftcls.cli.shared_options import (
    FOLDER,
    base_option,
    directory_argument,
    json_option,
    source_options,
)


@click.command(short_help="Describe an adapter folder.")
@directory_argument
@json_option
def show(**options: Any) -> None:
    """Describe an adapter folder, without loading its base.

    \b
    peftcls show runs/spam
    """
    from peftcls.cli.showing import show_folder

    show_folder(**options)


@click.command(short_help="Write one model for plain transformers.")
@directory_argument
@click.argument("out", type=FOLDER)
@base_option
def merge(**options: Any) -> None:
    """Merge the adapter in DIR into its base; OUT is a model that plain transformers loads.

    \b
    peftcls merge runs/spam runs/spam_merged
    """
    from peftcls.cli.folders import merge_folder

    merge_folder(**options)


@click.command(short_help="Write an ONNX model.")
@directory_argument
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


@click.command(short_help="Upload an adapter to the hub.")
@directory_argument
@click.argument("repository", metavar="REPO")
@click.option("--private", is_flag=True, help="Let nobody else see it, if it is new.")
def push(**options: Any) -> None:
    """Upload the adapter in DIR, with its model card, to the hub as REPO (owner/name).

    \b
    peftcls push runs/spam my-name/spam
    """
    from peftcls.cli.folders import push_folder

    push_folder(**options)
