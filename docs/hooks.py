"""MkDocs hooks: the help of all commands on one page, and a search that works from the disk."""

import os
from pathlib import Path
from typing import Any

import click

from peftcls.cli import commands

MARK = "<!-- the help of all commands -->"
WIDTH = 78  # characters that fit beside the table of contents


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of all commands where a page has the mark."""
    return markdown.replace(MARK, help_sections()) if MARK in markdown else markdown


def help_sections() -> str:
    """A section for each command, with its help as a terminal shows it."""
    os.environ["COLUMNS"] = str(WIDTH)
    parts = []
    for name, command in commands.commands.items():
        context = click.Context(
            command, info_name=f"peftcls {name}", max_content_width=WIDTH, terminal_width=WIDTH
        )
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def on_post_build(config: Any, **_: Any) -> None:
    """Write the search index as a script too.

    A page that was opened from the disk may load scripts, but no data.
    """
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(
        f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8"
    )
