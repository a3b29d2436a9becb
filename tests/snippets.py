"""What README, pages and notebook show is run: their blocks, and small files of the names that they use."""

import csv
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftcls import cli, read_rows
from peftcls.demo import BASE_FOLDER, sample

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CHINESE = ROOT / "README.zh.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page, in their order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def run_python(page: Path, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a page's Python blocks in order, as a reader who pastes them one after the other; the names that they leave."""
    names = {"__name__": "pasted"} if names is None else names
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


def run_command(line: str) -> int:
    """Run a `peftcls` command in this process, a training for one epoch; its exit code."""
    program, *arguments = shlex.split(line)
    assert program == "peftcls", f"{line!r} is not run here"
    return cli.main([*arguments, *(["--epochs", "1"] if arguments[0] == "train" else [])])


def write_papers(folder: Path) -> None:
    """The files that the README calls papers.csv, held_out.csv and unlabelled.csv."""
    some_rows("papers_train.csv", folder / "papers.csv", 16)
    some_rows("papers_validation.csv", folder / "held_out.csv", 8)
    some_rows("papers_test.csv", folder / "unlabelled.csv", 4, drop="label")


def write_all(folder: Path) -> None:
    """The files that the pages of the documentation name."""
    some_rows("messages_train.csv", folder / "messages.csv", 24)
    some_rows("messages_validation.csv", folder / "held_out.csv", 12)
    some_rows("messages_test.csv", folder / "unlabelled.csv", 4, drop="label")
    some_rows("pairs_train.csv", folder / "pairs.csv", 20)
    some_rows("pairs_test.csv", folder / "new_pairs.csv", 4, drop="label")
    some_rows("papers_train.csv", folder / "papers.csv", 10)
    (folder / "old_export.csv").write_bytes("text,label\nCafé?,ham\n".encode("cp1252"))
    messages = read_rows(folder / "messages.csv").to_list()
    _write(
        folder / "new_messages.csv",
        [
            *messages[:4],
            *({"text": f"Parcel {n} is on its way", "label": "delivery"} for n in range(4)),
        ],
    )
    pairs = read_rows(folder / "pairs.csv").to_list()
    _write(
        folder / "scores.csv",
        [{**pair, "score": n / 4 + int(pair.pop("label"))} for n, pair in enumerate(pairs)],
    )
    for name, first in (("topics.jsonl", 0), ("topics_held_out.jsonl", 12)):
        rows = [
            {"text": m["text"], "label": [[], ["money"], ["health", "money"], ["health"]][n % 4]}
            for n, m in enumerate(messages)
        ]
        (folder / name).write_text(
            "\n".join(map(json.dumps, rows[first : first + 12])), encoding="utf-8"
        )
    for name, source in (
        ("questions.json", "diabetes_train.json"),
        ("questions_held_out.json", "diabetes_validation.json"),
    ):
        squad = json.loads(sample(source).read_text(encoding="utf-8"))
        paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
        impossible = [
            any(qa["is_impossible"] for qa in paragraph["qas"]) for paragraph in paragraphs
        ]
        kept = [paragraphs[impossible.index(False)], paragraphs[impossible.index(True)]]
        squad["data"] = [{"title": "A clinic", "paragraphs": kept}]
        (folder / name).write_text(json.dumps(squad), encoding="utf-8")
    (folder / "bases").mkdir()
    os.symlink(BASE_FOLDER, folder / "bases" / "small", target_is_directory=True)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def some_rows(name: str, path: Path, count: int, *, drop: str | None = None) -> Path:
    with sample(name).open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    names = [n for n in rows[0] if n != drop]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
