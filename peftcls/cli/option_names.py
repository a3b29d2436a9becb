"""Rewrites error messages to name command-line options instead of Python arguments."""

import re

import click

PYTHON_NAMES = {"--out": "output_dir", "--replay": "with_replay"}
"""What stands for an option in the package's messages, where its name is another one."""
OF_REPLAY = re.compile(r" When continuing from a folder,[^.]*\.")


def in_options(sentence: str, command: click.Command | None) -> str:
    """Replace Python arguments in a sentence by options: `max_length=4` -> `--max-length 4`.

    Args:
        sentence: an error message of the package.
        command: the command that was run; None leaves the sentence as it is.
    """
    if command is None:
        return sentence
    for parameter in command.params:
        option = _long_option(parameter)
        if option is None:
            continue
        # What names both says it once: base=... (--base DIR).
        sentence = re.sub(rf"\b\w+=[.]{{3}} \(({option}(?![\w-])[^)]*)\)", r"\1", sentence)
        from_option = option.removeprefix("--").replace("-", "_")
        names = (from_option, str(parameter.name), PYTHON_NAMES.get(option, from_option))
        for argument in dict.fromkeys(names):
            sentence = _replace_argument(sentence, argument, option)
    return _without_replay(sentence, command)


def with_options(sentence: str) -> str:
    """The sentence with options for those arguments that cannot be ordinary words.

    It may hold what rows hold, so that other names stay as they are.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return sentence
    for parameter in context.command.params:
        option, argument = _long_option(parameter), str(parameter.name)
        if option is not None and "_" in argument:
            sentence = _replace_argument(sentence, argument, option)
    return _without_replay(sentence, context.command)


def _without_replay(sentence: str, command: click.Command) -> str:
    """The sentence without what to do when an adapter learns on, where the command has no part."""
    if any("--replay" in parameter.opts for parameter in command.params):
        return sentence
    return OF_REPLAY.sub("", sentence)


def _long_option(parameter: click.Parameter) -> str | None:
    """The parameter's option that starts with two dashes."""
    for option in parameter.opts:
        if option.startswith("--"):
            return option
    return None


def _replace_argument(sentence: str, argument: str, option: str) -> str:
    """The sentence with one Python argument replaced by its option."""
    assignment = rf"(?<![\w.(-]){argument}="
    sentence = re.sub(rf"{assignment}True\b", option, sentence)
    sentence = re.sub(rf"{assignment}'([^']*)'", rf"{option} \1", sentence)
    sentence = re.sub(rf"{assignment}(?=\S)", f"{option} ", sentence)
    # A bare name is replaced only where it cannot be an ordinary word: with an underscore in it.
    if "_" in argument:
        sentence = re.sub(rf"(?<![\w'./-]){argument}(?![\w='(]|[.]\w)", option, sentence)
    return sentence
