"""The `peftcls` command: its options, help and exit codes.

The work is done by the package's public functions. Modules that need a model library are imported
by the command that is run, so that help and shell completion come at once.
"""

import difflib
import os
import shlex
import sys
from collections.abc import Sequence

import click

from peftcls.argument_names import explanation, most_similar
from peftcls.cli.folder_commands import export, merge, push, show
from peftcls.cli.option_names import in_options
from peftcls.cli.plan_commands import plan
from peftcls.cli.train_commands import check, learn_on, train
from peftcls.cli.use_commands import compare, evaluate, predict, serve, try_out
from peftcls.errors import MissingColumnsError
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
        print(_for_the_command(error, _command(arguments)), file=sys.stderr)
        return FAILED
    finally:
        # A notebook or a server may call this again and again.
        _remove_copies()


def _remove_copies() -> None:
    """Remove the copies of files that the command has made; none if it has read no file."""
    scratch = sys.modules.get("peftcls.data.scratch")
    if scratch is not None:
        scratch.forget_scratch_folder()


def _for_the_command(error: Exception, command: click.Command | None) -> str:
    """What an error of the package says to somebody who has a file and options."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot read or write {error.filename}: {error.strerror.lower()}."
    if not isinstance(error, MissingColumnsError):
        return in_options(str(error), command)
    maps = " ".join(f"--map {shlex.quote(f'{new}={old}')}" for new, old in error.probably_meant)
    has_map = command is not None and any("--map" in param.opts for param in command.params)
    hint = f" Say which column of the file is meant, for example {maps}." if maps else ""
    return error.sentence + (hint if has_map else "")


def _command(arguments: Sequence[str] | None) -> click.Command | None:
    """The command that was run."""
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments:
        return None
    return commands.commands.get(arguments[0])


def _with_suggestion(error: click.UsageError) -> click.UsageError:
    """The error with the choice or the option that was probably meant."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        return _with_option(error, error.ctx)
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


def _with_option(error: click.NoSuchOption, context: click.Context) -> click.UsageError:
    """The error with the option that has this meaning here; click knows similar letters only."""
    options = [option for parameter in context.command.params for option in parameter.opts]
    by_name = {option.strip("-").replace("-", "_"): option for option in options}
    typed = error.option_name.strip("-").replace("-", "_")
    explained = explanation(typed, by_name, by_name.__getitem__)
    if explained is not None:
        return click.UsageError(f"There is no option {error.option_name}{explained}.", context)
    similar = most_similar(typed, by_name)
    if similar is None:
        return error
    return click.NoSuchOption(error.option_name, possibilities=[by_name[similar]], ctx=context)


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
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


for command in (
    check,
    plan,
    train,
    learn_on,
    evaluate,
    predict,
    try_out,
    serve,
    show,
    compare,
    merge,
    export,
    push,
):
    commands.add_command(command)
