"""What the study in seven_questions.py compares, and its report: a table, an answer to each question, a figure."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study_run import EXPERIMENTS

from peftcls.metrics import Interval, interval

DEFAULT, MEAN, LORA = "last block", "mean of tokens", "LoRA, attention"


@dataclasses.dataclass(frozen=True)
class Question:
    """One or more comparisons, each of one experiment with others, and what a reader must know to believe the answer."""

    title: str
    comparisons: tuple[tuple[str, tuple[str, ...]], ...]
    remark: str
    costs: bool = False  # whether the answer also says what each took
    called: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # experiments by what they are in this question


QUESTIONS = (
    Question(
        "1. Which layers to train?",
        ((DEFAULT, ("head only", "last two blocks", "all layers", LORA, "LoRA, all linear")),),
        "each kind of training has the learning rate that the table says, and none was tuned",
    ),
    Question(
        "2. Which token to read?",
        ((DEFAULT, ("first token", MEAN)),),
        "under a causal mask the first token has seen nothing but itself",
        called={DEFAULT: "last token"},
    ),
    Question(
        "3. Encoder or decoder?",
        ((DEFAULT, ("encoder, last block",)), (LORA, ("encoder, LoRA",))),
        "the two bases differ in size and in what they were pretrained on as well as in their mask",
        called={DEFAULT: "decoder, last block", LORA: "decoder, LoRA"},
    ),
    Question(
        "4. Causal mask or none?",
        ((DEFAULT, ("no causal mask",)), (MEAN, ("no causal mask, mean of tokens",))),
        "the base was pretrained with the mask, and only what is trained can get used to doing without",
        called={DEFAULT: "causal mask", MEAN: "causal mask, mean of tokens"},
    ),
    Question(
        "5. Does a larger model help?",
        ((DEFAULT, ("larger model",)),),
        "all else is equal but the learning rate, if the table says so",
        called={DEFAULT: "the model"},
    ),
    Question(
        "6. LoRA or full training?",
        (("all layers", (LORA, "LoRA, all linear")),),
        "memory holds the process as a whole",
        costs=True,
    ),
    Question(
        "7. How to pad?",
        (
            (
                DEFAULT,
                (
                    "no padding, batch of 1",
                    "no padding, 16 rows one by one",
                    "padded to a fixed width",
                    "padded, last position whatever it holds",
                ),
            ),
        ),
        "a batch of 1 takes 16 times as many steps at the same rate; the last position whatever it holds is the error of reading "
        "padding as text",
        costs=True,
        called={DEFAULT: "padded to the longest of a micro-batch"},
    ),
    Question(
        "Controls: is it the pretraining?",
        (
            (DEFAULT, ("random weights, last block", "TF-IDF + logistic regression", "majority")),
            ("all layers", ("random weights, all layers",)),
        ),
        "random weights have the same shape and nothing learnt before",
    ),
)


class Summary:
    """All seeds of one experiment."""

    def __init__(self, name: str, runs: Sequence[dict[str, Any]]) -> None:
        self.name, self.runs = name, runs
        self.right = np.array([[100.0 * int(r) for r in run["test_right"]] for run in runs]).mean(0)
        """Of every test row the percentage of seeds that got it right."""
        self.over_rows: Interval = interval(np.mean, self.right.tolist())
        scores = [run["test_accuracy"] for run in runs]
        half = (
            stats.t.ppf(0.975, len(runs) - 1) * np.std(scores, ddof=1) / math.sqrt(len(runs))
            if len(runs) > 2
            else math.nan
        )
        self.over_seeds: Interval | None = (
            None
            if math.isnan(half)
            else (max(np.mean(scores) - half, 0), min(np.mean(scores) + half, 100))
        )
        self.interval = self.over_seeds or self.over_rows

    def mean(self, measure: str) -> float:
        """Over seeds; not a number where the experiment has no such measure."""
        return float(np.mean([run.get(measure, math.nan) for run in self.runs]))

    def told_from(self, other: "Summary") -> int:
        """1 where it is better than another, -1 where worse, 0 where intervals overlap or the paired one holds 0."""
        low, high = interval(np.mean, (self.right - other.right).tolist())
        if low > 0 and self.interval[0] > other.interval[1]:
            return 1
        return -1 if high < 0 and self.interval[1] < other.interval[0] else 0

    def shown(self, question: Question) -> str:
        """The name and the score, and what it took."""
        took = f", {self.mean('trained_parameters'):,.0f} weights, {self.mean('cpu_seconds'):.0f} s, {self.mean('peak_mib'):.0f} MiB"
        return f"{question.called.get(self.name, self.name)} ({self.mean('test_accuracy'):.1f} %{took if question.costs else ''})"


def answer(
    question: Question, found: dict[str, Summary], bases: dict[str, Any], failed: dict[str, str]
) -> str:
    """One sentence from the numbers alone, and one on what there are no numbers of."""
    clauses, absent = [], []
    for reference, others in question.comparisons:
        absent += [name for name in (reference, *others) if name not in found]
        here = [found[name] for name in others if name in found]
        if reference in found and here:
            than, said = (
                found[reference],
                {1: "better", -1: "worse", 0: "not told apart by these data"},
            )
            groups = {
                sign: "; ".join(s.shown(question) for s in here if s.told_from(than) == sign)
                for sign in said
            }
            parts = [f"{said[sign]}: {names}" for sign, names in groups.items() if names]
            clauses.append(f"against {than.shown(question)}, {', and '.join(parts)}")
    text = (
        f" {'; '.join(clauses).replace('against', 'Against', 1)} ({question.remark})."
        if clauses
        else ""
    )
    if unnamed := next(
        (
            o
            for o in ("encoder", "larger")
            if not bases.get(o) and any(name.startswith(o) for name in absent)
        ),
        None,
    ):
        text += f" Skipped, since no --{unnamed} was given."
        absent = [name for name in absent if not name.startswith(unnamed)]
    if absent:
        reasons = [f"{name} ({failed.get(name, 'not run yet')})" for name in dict.fromkeys(absent)]
        text += f" No result: {'; '.join(reasons)}."
    return f"**{question.title}**{text}"


def table(found: dict[str, Summary]) -> str:
    """A line for each experiment, with the questions that it answers."""
    head = (
        "experiment",
        "questions",
        "runs",
        "learning rate",
        "trained weights",
        "train",
        "validation",
        "test",
        "95 % over seeds",
        "95 % over test rows",
        "seconds",
        "CPU seconds",
        "peak MiB",
        "of it before training",
    )
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for s in found.values():
        asked = " ".join(
            q.title[0]
            for q in QUESTIONS
            if any(s.name in (reference, *others) for reference, others in q.comparisons)
        )
        spans = [
            "" if span is None else f"{span[0]:.1f} to {span[1]:.1f}"
            for span in (s.over_seeds, s.over_rows)
        ]
        scores = [f"{s.mean(f'{part}_accuracy'):.1f}" for part in ("train", "valid", "test")]
        costs = [
            "" if math.isnan(value := s.mean(name)) else f"{value:{form}}"
            for name, form in (
                ("learning_rate", "g"),
                ("trained_parameters", ",.0f"),
                ("seconds", ".0f"),
                ("cpu_seconds", ".0f"),
                ("peak_mib", ".0f"),
                ("peak_mib_before_training", ".0f"),
            )
        ]
        lines.append(
            f"| {' | '.join([s.name, asked, str(len(s.runs)), *costs[:2], *scores, *spans, *costs[2:]])} |"
        )
    return "\n".join(lines)


def draw(found: dict[str, Summary], path: Path) -> None:
    """Test accuracy with intervals, a panel for each question."""
    try:
        import matplotlib
    except ImportError:
        return print(
            "there is no figure, since matplotlib is not installed: pip install matplotlib, then --report-only."
        )
    matplotlib.use("Agg")
    from matplotlib import pyplot

    named = [
        list(
            dict.fromkeys(
                n for reference, others in q.comparisons for n in (reference, *others) if n in found
            )
        )
        for q in QUESTIONS
    ]
    shown = [(q, names) for q, names in zip(QUESTIONS, named, strict=True) if len(names) > 1]
    if not shown:
        return None
    figure, axes = pyplot.subplots(
        len(shown),
        1,
        sharex=True,
        squeeze=False,
        figsize=(9, 0.32 * sum(len(n) + 2 for _, n in shown)),
        height_ratios=[len(names) + 0.5 for _, names in shown],
        layout="constrained",
    )
    for axis, (question, names) in zip(axes[:, 0], shown, strict=True):
        for place, s in enumerate(found[name] for name in names):
            axis.plot(
                s.over_rows,
                [place] * 2,
                color="#b8b8b8",
                linewidth=1.5,
                label="95 % interval over test rows (bootstrap)",
            )
            if s.over_seeds:
                axis.plot(
                    s.over_seeds,
                    [place] * 2,
                    color="#1f5fa8",
                    linewidth=4,
                    alpha=0.6,
                    label="95 % interval over seeds (t)",
                )
            axis.plot(
                s.mean("test_accuracy"),
                place,
                "o",
                color="#0b2c52",
                markersize=5,
                label="mean over seeds",
            )
        axis.set(
            yticks=range(len(names)),
            yticklabels=[question.called.get(n, n) for n in names],
            ylim=(len(names) - 0.4, -0.6),
        )
        axis.set_title(question.title, loc="left", fontsize=10, fontweight="bold")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel("test accuracy, %")
    handles = {
        label: handle
        for axis in axes[:, 0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    return None


def write_report(out: Path) -> None:
    """The table, the answers and the figure of the runs in OUT.json that belong to the study there."""
    if not (results := out.with_suffix(".json")).is_file():
        sys.exit(
            f"there is no {results}, expected the results of a study; run it first, or name it by --out."
        )
    kept = json.loads(results.read_text())
    runs = [
        run
        for run in kept["runs"].values()
        if {**run["settings"], **kept["study"]} == run["settings"]
        and run["settings"]["base"] == kept["bases"][run["settings"]["experiment"]["base"]]
    ]
    by = {
        name: [run for run in runs if run["settings"]["experiment"]["name"] == name]
        for name in EXPERIMENTS
    }
    found = {
        name: Summary(name, right)
        for name, own in by.items()
        if (right := [run for run in own if "failed" not in run])
    }
    failed = {name: run["failed"] for name, own in by.items() for run in own if "failed" in run}
    if not found:
        sys.exit(
            f"{results} has no finished run of its study, expected at least one; run the study first."
        )
    first, study = next(iter(found.values())).runs[0], kept["study"]
    seeds = sorted({run["settings"]["seed"] for s in found.values() for run in s.runs})
    rows, sources = (
        first["rows"],
        {
            part: data["file"] or "split off the training file"
            for part, data in study["data"].items()
        },
    )
    files = ", ".join(f"{rows[part]} {part} rows ({file})" for part, file in sources.items())
    made = {
        k: " and ".join(sorted({run["machine"][k] for s in found.values() for run in s.runs}))
        for k in first["machine"]
    }
    bases = ", ".join(f"{option} {name}" for option, name in kept["bases"].items() if name)
    notes = (
        f"{files}; {len(first['labels'])} labels. Bases: {bases}. {study['epochs']} epochs, seeds {', '.join(map(str, seeds))}, "
        f"{study['threads']} thread(s). {', '.join(f'{k} {v}' for k, v in made.items())}.\n\n"
        "Accuracies are means over seeds, in %; that of training is on at most 500 rows. The interval over seeds is a t-interval of "
        "the mean, from three seeds on, and says how far chance in training moves the score on these very rows; the one over "
        "test rows is a bootstrap of the rows' mean score, and says how far other rows would. Two are told apart only if their "
        "intervals (over seeds where there is one) do not overlap and the paired bootstrap of their difference over test rows "
        "excludes 0; nothing is corrected for the number of comparisons. Seconds and memory are of training and saving; most "
        "memory is the libraries."
    )
    answers = "\n".join(f"- {answer(q, found, kept['bases'], failed)}" for q in QUESTIONS)
    draw(found, out.with_suffix(".png"))
    out.with_suffix(".md").write_text(
        f"# Seven questions about a classifier\n\n{notes}\n\n{table(found)}\n\n{answers}\n\n"
        f"![test accuracy by question]({out.with_suffix('.png').name})\n",
        encoding="utf-8",
    )
    print(f"{len(runs)} runs are in {out.with_suffix('.md')}.")
