"""The options of `peftcls serve`."""

import functools
from collections.abc import Callable
from typing import Any

import click


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where it serves, and how much it takes on."""

    @click.option(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        show_default=True,
        help="Which network interface listens; the default is this machine only. There is no "
        "password: with another host, put a proxy in front that asks for one.",
    )
    @click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="0 for any that is free.",
    )
    @click.option(
        "--max-body-bytes",
        type=click.IntRange(min=1),
        help="Of one request; a larger one gets the status 413.  [default: 1048576]",
    )
    @click.option(
        "--max-rows",
        type=click.IntRange(min=1),
        help="Of one request; one with more gets the status 413.  [default: 256]",
    )
    @click.option(
        "--max-row-tokens",
        type=click.IntRange(min=1),
        help="Of one row in all its windows; a longer one gets the status 413.  [default: 32768]",
    )
    @click.option(
        "--max-open-requests",
        type=click.IntRange(min=1),
        help="Read, waiting or being answered at a time; one more gets the status 503 and is "
        "told when to try again.  [default: 512]",
    )
    @click.option(
        "--timeout-seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="Of one request; then it gets the status 504. An end waits no longer.  [default: 30]",
    )
    @functools.wraps(command)
    def with_options(**options: Any) -> Any:
        return command(**options)

    return with_options
