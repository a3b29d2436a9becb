"""What the study in seven_questions.py compares, and its report: a table, answers, a figure."""

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

DEFAULT = "last block"
MEAN = "mean of tokens"
LORA = "LoRA, attention"
# An interval over seeds needs so many.
MIN_SEEDS = 3
VERDICTS = {1: "better", -1: "worse", 0: "not told apart by these data"}
NOTES = (
    "Accuracies are means over seeds, in %; that of training is on at most 500 rows. The interval "
    "over seeds is a t-interval of the mean, from three seeds on, and says how far chance in "
    "training moves the score on these very rows; the one over test rows is a bootstrap of the "
    "rows' mean score, and says how far other rows would. Two are told apart only if their "
    "intervals (over seeds where there is one) do not overlap and the paired bootstrap of their "
    "difference over test rows excludes 0; nothing is corrected for the number of comparisons. "
    "Seconds and memory are of training and saving; most memory is the libraries."
)
Run = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """One or more comparisons, each of one experiment with others.

    Args:
        title: of the question.
        comparisons: the reference and the experiments that are compared with it.
        remark: what a reader must know to believe the answer.
        shows_costs: whether the answer also says what each experiment took.
        names: experiments by what they are in this question.
    """

    title: str
    comparisons: tuple[tuple[str, tuple[str, ...]], ...]
    remark: str
    shows_costs: bool = False
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def experiments(self) -> list[str]:
        """All experiments that are compared, each once."""
        names: dict[str, None] = {}
        for reference, others in self.comparisons:
            names |= dict.fromkeys((reference, *others))
        return list(names)


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
        names={DEFAULT: "last token"},
    ),
    Question(
        "3. Encoder or decoder?",
        ((DEFAULT, ("encoder, last block",)), (LORA, ("encoder, LoRA",))),
        "the two bases differ in size and in what they were pretrained on as well as in their mask",
        names={DEFAULT: "decoder, last block", LORA: "decoder, LoRA"},
    ),
    Question(
        "4. Causal mask or none?",
        ((DEFAULT, ("no causal mask",)), (MEAN, ("no causal mask, mean of tokens",))),
        "the base was pretrained with the mask, and only what is trained can get used to doing "
        "without",
        names={DEFAULT: "causal mask", MEAN: "causal mask, mean of tokens"},
    ),
    Question(
        "5. Does a larger model help?",
        ((DEFAULT, ("larger model",)),),
        "all else is equal but the learning rate, if the table says so",
        names={DEFAULT: "the model"},
    ),
    Question(
        "6. LoRA or full training?",
        (("all layers", (LORA, "LoRA, all linear")),),
        "memory holds the process as a whole",
        shows_costs=True,
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
        "a batch of 1 takes 16 times as many steps at the same rate; the last position whatever it "
        "holds is the error of reading padding as text",
        shows_costs=True,
        names={DEFAULT: "padded to the longest of a micro-batch"},
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
    """All seeds of one experiment.

    Args:
        name: of the experiment.
        runs: its results, a seed each.
    """

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name = name
        self.runs = runs
        right = [[100.0 * int(r) for r in run["test_right"]] for run in runs]
        self.right = np.array(right).mean(0)
        """For every test row the percentage of seeds that got it right."""
        self.over_rows: Interval = interval(np.mean, self.right.tolist())
        self.over_seeds = _seed_interval([run["test_accuracy"] for run in runs])
        self.interval = self.over_seeds or self.over_rows

    def mean(self, measure: str) -> float:
        """The mean over seeds; not a number where the experiment has no such measure."""
        return float(np.mean([run.get(measure, math.nan) for run in self.runs]))

    def verdict_against(self, other: "Summary") -> int:
        """1 where it is better, -1 where worse, 0 where the two are not told apart."""
        low, high = interval(np.mean, (self.right - other.right).tolist())
        if low > 0 and self.interval[0] > other.interval[1]:
            return 1
        if high < 0 and self.interval[1] < other.interval[0]:
            return -1
        return 0

    def shown(self, question: Question) -> str:
        """The name and the score, and the costs if the question shows them."""
        text = f"{self.mean('test_accuracy'):.1f} %"
        if question.shows_costs:
            text += (
                f", {self.mean('trained_parameters'):,.0f} weights, "
                f"{self.mean('cpu_seconds'):.0f} s, {self.mean('peak_mib'):.0f} MiB"
            )
        return f"{question.names.get(self.name, self.name)} ({text})"


def _seed_interval(scores: list[float]) -> Interval | None:
    """The 95 % t-interval of a percentage; None where there are too few seeds."""
    if len(scores) < MIN_SEEDS:
        return None
    deviation = np.std(scores, ddof=1)
    half = stats.t.ppf(0.975, len(scores) - 1) * deviation / math.sqrt(len(scores))
    if math.isnan(half):
        return None
    mean = np.mean(scores)
    return (max(mean - half, 0), min(mean + half, 100))


def answer(
    question: Question,
    found: dict[str, Summary],
    bases: dict[str, Any],
    failed: dict[str, str],
) -> str:
    """One sentence from the numbers, and one on what there are no numbers of."""
    text = f"**{question.title}**"
    clauses = _clauses(question, found)
    if clauses:
        joined = "; ".join(clauses)
        text += f" A{joined[1:]} ({question.remark})."
    missing = [name for name in question.experiments if name not in found]
    for option in ("encoder", "larger"):
        without_option = [name for name in missing if not name.startswith(option)]
        if not bases.get(option) and len(without_option) < len(missing):
            text += f" Skipped, since no --{option} was given."
            missing = without_option
    if missing:
        reasons = [f"{name} ({failed.get(name, 'not run yet')})" for name in missing]
        text += f" No result: {'; '.join(reasons)}."
    return text


def _clauses(question: Question, found: dict[str, Summary]) -> list[str]:
    """A clause for each comparison: what is better and worse than its reference."""
    clauses = []
    for name, other_names in question.comparisons:
        others = [found[other] for other in other_names if other in found]
        if name not in found or not others:
            continue
        reference = found[name]
        parts = []
        for verdict, words in VERDICTS.items():
            shown = [
                other.shown(question)
                for other in others
                if other.verdict_against(reference) == verdict
            ]
            if shown:
                parts.append(f"{words}: {'; '.join(shown)}")
        clauses.append(f"against {reference.shown(question)}, {', and '.join(parts)}")
    return clauses


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
    lines += [f"| {' | '.join(_cells(summary))} |" for summary in found.values()]
    return "\n".join(lines)


def _cells(summary: Summary) -> list[str]:
    questions = [q.title[0] for q in QUESTIONS if summary.name in q.experiments]
    return [
        summary.name,
        " ".join(questions),
        str(len(summary.runs)),
        _number(summary.mean("learning_rate"), "g"),
        _number(summary.mean("trained_parameters"), ",.0f"),
        f"{summary.mean('train_accuracy'):.1f}",
        f"{summary.mean('valid_accuracy'):.1f}",
        f"{summary.mean('test_accuracy'):.1f}",
        _span(summary.over_seeds),
        _span(summary.over_rows),
        _number(summary.mean("seconds"), ".0f"),
        _number(summary.mean("cpu_seconds"), ".0f"),
        _number(summary.mean("peak_mib"), ".0f"),
        _number(summary.mean("peak_mib_before_training"), ".0f"),
    ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _span(span: Interval | None) -> str:
    return "" if span is None else f"{span[0]:.1f} to {span[1]:.1f}"


def draw(found: dict[str, Summary], path: Path) -> None:
    """Test accuracy with intervals, a panel for each question."""
    try:
        import matplotlib
    except ImportError:
        print(
            "there is no figure, since matplotlib is not installed: pip install matplotlib, then "
            "--report-only."
        )
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for question in QUESTIONS:
        summaries = [found[name] for name in question.experiments if name in found]
        if len(summaries) > 1:
            panels.append((question, summaries))
    if not panels:
        return
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        figsize=(9, 0.32 * sum(len(summaries) + 2 for _, summaries in panels)),
        height_ratios=[len(summaries) + 0.5 for _, summaries in panels],
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for axis, (question, summaries) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, question, summaries)
        axis_handles, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, axis_handles, strict=True))
    axes[-1, 0].set_xlabel("test accuracy, %")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130)


def _draw_panel(axis: Any, question: Question, summaries: list[Summary]) -> None:
    """A line for each experiment: both intervals and the mean."""
    for position, summary in enumerate(summaries):
        axis.plot(
            summary.over_rows,
            [position, position],
            color="#b8b8b8",
            linewidth=1.5,
            label="95 % interval over test rows (bootstrap)",
        )
        if summary.over_seeds:
            axis.plot(
                summary.over_seeds,
                [position, position],
                color="#1f5fa8",
                linewidth=4,
                alpha=0.6,
                label="95 % interval over seeds (t)",
            )
        axis.plot(
            summary.mean("test_accuracy"),
            position,
            "o",
            color="#0b2c52",
            markersize=5,
            label="mean over seeds",
        )
    names = [question.names.get(summary.name, summary.name) for summary in summaries]
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axis.set_title(question.title, loc="left", fontsize=10, fontweight="bold")
    axis.grid(axis="x", alpha=0.3)


def write_report(out: Path) -> None:
    """Write the table, the answers and the figure of the runs in OUT.json that are of its study."""
    results = out.with_suffix(".json")
    if not results.is_file():
        sys.exit(
            f"there is no {results}, expected the results of a study; run it first, or name it by "
            "--out."
        )
    kept = json.loads(results.read_text())
    runs = [run for run in kept["runs"].values() if _is_of_study(run, kept)]
    found: dict[str, Summary] = {}
    failed: dict[str, str] = {}
    for name in EXPERIMENTS:
        of_name = [run for run in runs if run["settings"]["experiment"]["name"] == name]
        finished = [run for run in of_name if "failed" not in run]
        if finished:
            found[name] = Summary(name, finished)
        for run in of_name:
            if "failed" in run:
                failed[name] = run["failed"]
    if not found:
        sys.exit(
            f"{results} has no finished run of its study, expected at least one; run the study "
            "first."
        )
    answers = [f"- {answer(question, found, kept['bases'], failed)}" for question in QUESTIONS]
    listed = "\n".join(answers)
    figure = out.with_suffix(".png")
    draw(found, figure)
    out.with_suffix(".md").write_text(
        f"# Seven questions about a classifier\n\n{_about(kept, found)}\n\n{NOTES}\n\n"
        f"{table(found)}\n\n{listed}\n\n![test accuracy by question]({figure.name})\n",
        encoding="utf-8",
    )
    print(f"{len(runs)} runs are in {out.with_suffix('.md')}.")


def _is_of_study(run: Run, kept: dict[str, Any]) -> bool:
    """Whether a run has the settings and the base of the study."""
    settings = run["settings"]
    base = kept["bases"][settings["experiment"]["base"]]
    return {**settings, **kept["study"]} == settings and settings["base"] == base


def _about(kept: dict[str, Any], found: dict[str, Summary]) -> str:
    """The rows, bases, seeds, machines and versions of a study."""
    study = kept["study"]
    runs = [run for summary in found.values() for run in summary.runs]
    first = runs[0]
    files = []
    for part, data in study["data"].items():
        source = data["file"] or "split off the training file"
        files.append(f"{first['rows'][part]} {part} rows ({source})")
    seeds = sorted({run["settings"]["seed"] for run in runs})
    machines = []
    for name in first["machine"]:
        values = sorted({run["machine"][name] for run in runs})
        machines.append(f"{name} {' and '.join(values)}")
    bases = [f"{option} {name}" for option, name in kept["bases"].items() if name]
    return (
        f"{', '.join(files)}; {len(first['labels'])} labels. Bases: {', '.join(bases)}. "
        f"{study['epochs']} epochs, seeds {', '.join(map(str, seeds))}, "
        f"{study['threads']} thread(s). {', '.join(machines)}."
    )
