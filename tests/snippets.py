"""The snippets of the README and the documentation, and small files under the names they use."""

import contextlib
import csv
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peftcls
from peftcls import cli, read_rows
from peftcls.demo import BASE_FOLDER, sample

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CHINESE = ROOT / "README.zh.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page, in their order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def recipe_commands() -> list[str]:
    """The commands of all pages that start a recipe, each once; tests/test_readme.py runs them."""
    every = [line for page in PAGES for line in commands(page)]
    return [line for line in dict.fromkeys(every) if "peftcls " not in line]


def run_python(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks in order, as a reader who pastes them; returns their names."""
    names: dict[str, Any] = {"__name__": "pasted"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


def run_command(line: str) -> int:
    """Run a `peftcls` command, a training for one epoch; its exit code.

    It runs in this process, unless a launcher starts several.
    """
    program, *arguments = shlex.split(line)
    if program == "torchrun":
        launcher = [sys.executable, "-m", "torch.distributed.run"]
        return subprocess.run([*launcher, *arguments], check=False).returncode
    assert program == "peftcls", f"{line!r} is not run here"
    if arguments[0] == "train":
        arguments += ["--epochs", "1"]
    return cli.main(arguments)


def run_recipe(recipe: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a recipe as its command line does, in this process, which has the libraries loaded."""

    def start() -> None:
        runpy.run_path(str(recipe), run_name="__main__")

    return _run_here(start, [str(recipe), *map(str, arguments)])


def run_peftcls(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `peftcls` command in this process."""
    return _run_here(lambda: sys.exit(cli.main(arguments)), ["peftcls", *arguments])


def _run_here(start: Callable[[], None], command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program in this process; warnings are as in a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    given, sys.argv = sys.argv, command
    code = 0
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.resetwarnings()
            start()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        err.write(f"{ended.code or ''}\n")
    finally:
        sys.argv = given
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def write_papers(folder: Path) -> None:
    """Write the files that the README calls papers.csv, held_out.csv and unlabelled.csv."""
    some_rows("papers_train.csv", folder / "papers.csv", 16)
    some_rows("papers_validation.csv", folder / "held_out.csv", 8)
    some_rows("papers_test.csv", folder / "unlabelled.csv", 4, drop="label")


def write_all(folder: Path) -> None:
    """Write the files that the pages of the documentation name."""
    some_rows("messages_train.csv", folder / "messages.csv", 24)
    some_rows("messages_validation.csv", folder / "held_out.csv", 12)
    some_rows("messages_test.csv", folder / "unlabelled.csv", 4, drop="label")
    some_rows("pairs_train.csv", folder / "pairs.csv", 20)
    some_rows("pairs_test.csv", folder / "new_pairs.csv", 4, drop="label")
    some_rows("papers_train.csv", folder / "papers.csv", 24)
    some_rows("papers_validation.csv", folder / "held_out_papers.csv", 8)
    some_rows("papers_test.csv", folder / "new_papers.csv", 4, drop="label")
    (folder / "old_export.csv").write_bytes("text,label\nCafé?,ham\n".encode("cp1252"))
    messages = read_rows(folder / "messages.csv").to_list()
    _write_new_label(folder / "new_messages.csv", messages)
    _write_tickets(folder / "tickets.csv", messages)
    _write_scores(folder / "scores.csv", read_rows(folder / "pairs.csv").to_list())
    _write_topics(folder / "topics.jsonl", messages[:12])
    _write_topics(folder / "topics_held_out.jsonl", messages[12:24])
    _write_questions(folder / "questions.json", "diabetes_train.json")
    _write_questions(folder / "questions_held_out.json", "diabetes_validation.json")
    _write_plain_adapter(folder / "elsewhere")
    (folder / "bases").mkdir()
    os.symlink(BASE_FOLDER, folder / "bases" / "small", target_is_directory=True)


def _write_plain_adapter(folder: Path) -> None:
    """Write an adapter as PEFT alone does."""
    task = peftcls.Classification(labels=("ham", "spam"))
    model, _ = peftcls.load_base("demo", task)
    peftcls.attach_lora(model, task).save_pretrained(str(folder))


def _write_new_label(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    parcels = [{"text": f"Parcel {n} is on its way", "label": "delivery"} for n in range(4)]
    _write(path, [*messages[:4], *parcels])


def _write_tickets(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        {**message, "customer": f"c{number % 8}", "weight": 1 + number % 2}
        for number, message in enumerate(messages)
    ]
    _write(path, rows)


def _write_scores(path: Path, pairs: Iterable[dict[str, Any]]) -> None:
    rows = []
    for number, pair in enumerate(pairs):
        label = int(pair.pop("label"))
        rows.append({**pair, "score": number / 4 + label})
    _write(path, rows)


def _write_topics(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    labels: list[list[str]] = [[], ["money"], ["health", "money"], ["health"]]
    rows = [
        {"text": message["text"], "label": labels[number % len(labels)]}
        for number, message in enumerate(messages)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _write_questions(path: Path, name: str) -> None:
    """Write two sample paragraphs: one with answers only, one with an unanswered question."""
    squad = json.loads(sample(name).read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    impossible = [
        any(question["is_impossible"] for question in paragraph["qas"]) for paragraph in paragraphs
    ]
    kept = [paragraphs[impossible.index(False)], paragraphs[impossible.index(True)]]
    squad["data"] = [{"title": "A clinic", "paragraphs": kept}]
    path.write_text(json.dumps(squad), encoding="utf-8")


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def some_pages(name: str, path: Path, count: int) -> Path:
    """Write the first pages of a sample file of questions."""
    squad = json.loads(sample(name).read_text(encoding="utf-8"))
    pages = [page for article in squad["data"] for page in article["paragraphs"]]
    squad["data"] = [{"title": "A clinic", "paragraphs": pages[:count]}]
    path.write_text(json.dumps(squad), encoding="utf-8")
    return path


def some_rows(name: str, path: Path, count: int, *, drop: str | None = None) -> Path:
    """Write the first rows of a sample file, without one column if `drop` names it."""
    with sample(name).open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    names = [column for column in rows[0] if column != drop]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
