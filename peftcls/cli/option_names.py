"""Sentences of the package in the words of the command line."""

import re

import click


def in_options(sentence: str, command: click.Command | None) -> str:
    """A sentence that names settings of Python with the options of a command: `max_length=4` becomes `--max-length 4`."""
    for option in [] if command is None else command.params:
        long = next((way for way in option.opts if way.startswith("--")), None)
        if long is None:
            continue
        for said in dict.fromkeys((long.removeprefix("--").replace("-", "_"), str(option.name))):
            setting = rf"(?<![\w.(-]){said}="
            sentence = re.sub(rf"{setting}True\b", long, sentence)
            sentence = re.sub(rf"{setting}'([^']*)'", rf"{long} \1", sentence)
            sentence = re.sub(rf"{setting}(?=\S)", f"{long} ", sentence)
            if "_" in said:
                sentence = re.sub(rf"(?<![\w'./-]){said}(?![\w='(]|[.]\w)", long, sentence)
    return sentence
