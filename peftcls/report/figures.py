"""The figures of a report as SVG and PNG, in middle tones that fit a light and a dark page."""

import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from peftcls.report.numbers import Numbers
from peftcls.report.wording import is_share, score_title, write_list, write_plain, write_score

INK = "#787d86"
OWN = "#3f7fd0"
OTHER = "#c4761d"
RIM = "#1f3f68"
# Inside the page, colours are those of its style sheet.
PAGE_COLOURS = {INK: "var(--muted)", OWN: "var(--own)", OTHER: "var(--other)"}
WIDTH_INCHES = 4.4
HEIGHT_INCHES = 2.8
PNG_DPI = 200
MAX_NAME_CHARACTERS = 44
MAX_TICK_CHARACTERS = 18
MAX_CONFUSION_LABELS = 40
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "peftcls",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
}
# Without dates and version numbers, so that the same run gives the same files.
SVG_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
PNG_METADATA = {"Software": None}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure for the page and for other documents, with its title and what it shows in words."""

    title: str
    alt: str
    svg: str
    png: bytes


class SystemLook(NamedTuple):
    """How a system is drawn beside others."""

    colour: str
    line_width: float
    marker_size: float
    font_weight: str


OWN_LOOK = SystemLook(OWN, 5, 8, "bold")
OTHER_LOOK = SystemLook(INK, 3, 6, "normal")


class Plot(NamedTuple):
    """A figure that is drawn but not yet written."""

    title: str
    alt: str
    figure: Figure


def draw_figures(numbers: Numbers) -> dict[str, Drawing]:
    """Draw the figures that the numbers allow, by name."""
    plotters: dict[str, Callable[[Numbers], Plot | None]] = {
        "systems": _plot_systems,
        "loss": _plot_loss,
        "validation": _plot_validation,
        "confusion": _plot_confusion,
        "reliability": _plot_reliability,
        "scatter": _plot_scatter,
        "lengths": _plot_lengths,
    }
    drawings = {}
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A label may be in a script that the PNG's font lacks.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        for name, plotter in plotters.items():
            plot = plotter(numbers)
            if plot is not None:
                drawings[name] = _write(plot, name)
    return drawings


def _write(plot: Plot, name: str) -> Drawing:
    """Write a figure as SVG and PNG."""
    svg = io.BytesIO()
    png = io.BytesIO()
    plot.figure.savefig(svg, format="svg", metadata=SVG_METADATA)
    plot.figure.savefig(png, format="png", dpi=PNG_DPI, metadata=PNG_METADATA)
    page_svg = _svg_for_page(svg.getvalue(), name, plot.alt)
    return Drawing(plot.title, plot.alt, page_svg, png.getvalue())


def _svg_for_page(svg: bytes, name: str, alt: str) -> str:
    """Make an SVG a part of a page: colours of the page, ids of its own, no addresses."""
    root = ET.fromstring(svg)
    for element in root.iter():
        element.tag = _without_namespace(element.tag)
        metadata = [child for child in element if child.tag.endswith("}metadata")]
        for child in metadata:
            element.remove(child)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            attribute = _without_namespace(key)
            element.set(attribute, _page_value(attribute, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _without_namespace(name: str) -> str:
    return name.rpartition("}")[2]


def _page_value(attribute: str, value: str, name: str) -> str:
    """An attribute's value with the page's colours, and the figure's name before ids."""
    for colour, page_colour in PAGE_COLOURS.items():
        value = value.replace(colour, page_colour)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href":
        return value.replace("#", f"#{name}-")
    return value


def _new_axes(height: float = HEIGHT_INCHES) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    return figure, figure.add_subplot()


def _short_name(text: Any, longest: int = MAX_NAME_CHARACTERS) -> str:
    """A name that a figure can show: printable, and not too long."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    if len(printable) <= longest:
        return printable
    return printable[: longest - 1] + "…"


def _axis_factor(score: str) -> int:
    """What a score is multiplied by on an axis: shares are in percent."""
    return 100 if is_share(score) else 1


def _plot_systems(numbers: Numbers) -> Plot:
    """One line a system: its score and interval."""
    score = numbers["score"]
    systems = {
        name: scores[score]
        for name, scores in numbers["systems"].items()
        if scores[score][0] is not None
    }
    figure, axes = _new_axes(0.85 + 0.52 * len(systems))
    for place, (name, interval) in enumerate(systems.items()):
        is_own = name == numbers["headline"]["system"]
        _draw_system(axes, -place, name, interval, score, is_own=is_own)
    axes.set_ylim(-len(systems) + 0.55, 0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    title = score_title(score)
    axis_title = f"{title}, %" if is_share(score) else title
    axes.set_xlabel(axis_title)
    descriptions = []
    for name, (value, low, high) in systems.items():
        interval_text = f"{write_score(low, score)} to {write_score(high, score)}"
        descriptions.append(f"{name} {write_score(value, score)} ({interval_text})")
    alt = f"{axis_title}, with 95 % intervals: {write_list(descriptions)}."
    return Plot(f"{title} with 95 % intervals", alt, figure)


def _draw_system(
    axes: Axes, y: float, name: str, interval: Sequence[float], score: str, *, is_own: bool
) -> None:
    """Draw the score and interval of one system; the run's own in colour, and larger."""
    value, low, high = interval
    factor = _axis_factor(score)
    look = OWN_LOOK if is_own else OTHER_LOOK
    axes.plot(
        [factor * low, factor * high],
        [y, y],
        color=look.colour,
        linewidth=look.line_width,
        alpha=0.45,
        solid_capstyle="round",
    )
    axes.plot([factor * value], [y], "o", color=look.colour, markersize=look.marker_size)
    style: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "bottom",
        "color": look.colour,
        "weight": look.font_weight,
    }
    axes.text(0, y + 0.24, _short_name(name), **style)
    axes.text(1, y + 0.24, write_score(value, score), ha="right", **style)


def _points(numbers: Numbers, key: str) -> tuple[list[float], list[float]]:
    """The steps at which the history has a value, and the values."""
    entries = [entry for entry in numbers["run"]["history"] if entry.get(key) is not None]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _plot_loss(numbers: Numbers) -> Plot | None:
    steps, losses = _points(numbers, "loss")
    if not steps:
        return None
    figure, axes = _new_axes()
    axes.plot(steps, losses, color=INK, label="training", marker="o", markersize=2.5)
    valid_steps, valid_losses = _points(numbers, "valid_loss")
    if valid_steps:
        axes.plot(
            valid_steps, valid_losses, color=OWN, label="validation", marker="o", markersize=4
        )
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    alt = (
        f"Training loss from {write_plain(losses[0])} at step {steps[0]} "
        f"to {write_plain(losses[-1])} at step {steps[-1]}."
    )
    return Plot("Loss", alt, figure)


def _plot_validation(numbers: Numbers) -> Plot | None:
    """The headline scores over the steps."""
    points = {}
    for name in numbers["headline_scores"]:
        steps, values = _points(numbers, f"valid_{name}")
        if steps:
            points[name] = (steps, values)
    if not points:
        return None
    figure, axes = _new_axes()
    descriptions = []
    for (name, (steps, values)), colour in zip(points.items(), (OWN, OTHER), strict=False):
        factor = _axis_factor(name)
        axes.plot(
            steps,
            [factor * value for value in values],
            color=colour,
            marker="o",
            markersize=4,
            label=score_title(name),
        )
        first = write_score(values[0], name)
        last = write_score(values[-1], name)
        descriptions.append(f"{score_title(name)} from {first} to {last}")
    best_step = numbers["run"]["best_step"]
    if best_step is not None:
        axes.axvline(
            best_step, color=INK, linewidth=1, linestyle=":", label=f"kept: step {best_step}"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("%" if all(is_share(name) for name in points) else "score")
    axes.legend()
    alt = f"Validation scores over the steps: {write_list(descriptions)}."
    return Plot("Validation scores", alt, figure)


def _plot_confusion(numbers: Numbers) -> Plot | None:
    """The confusion matrix; None where there is none, or it has too many labels."""
    confusion = numbers["confusion"]
    if confusion is None or len(confusion["right"]) > MAX_CONFUSION_LABELS:
        return None
    counts = np.array(confusion["rows"])
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = max(3.0, 1.4 + 0.5 * len(confusion["given"]))
    figure, axes = _new_axes(side)
    figure.set_figwidth(side + 0.6)
    axes.grid(False)
    axes.imshow(
        np.ones_like(shares),
        cmap=mpl.colors.ListedColormap([OWN]),
        alpha=0.85 * shares,
        aspect="equal",
    )
    # Cells are transparent: white digits need a rim on a light page.
    rim = [withStroke(linewidth=2.5, foreground=RIM)]
    for (down, across), count in np.ndenumerate(counts):
        style: dict[str, Any] = {"color": INK}
        if count:
            style = {"color": "white", "path_effects": rim}
        axes.text(across, down, str(count), ha="center", va="center", **style)
    right = [_short_name(name, MAX_TICK_CHARACTERS) for name in confusion["right"]]
    given = [_short_name(name, MAX_TICK_CHARACTERS) for name in confusion["given"]]
    axes.set_xticks(range(len(given)), given, rotation=35, ha="right")
    axes.set_yticks(range(len(right)), right)
    axes.set_xlabel("answered")
    axes.set_ylabel("right")
    alt = f"{int(np.trace(counts))} of {int(counts.sum())} rows are on the diagonal."
    return Plot("Confusion", alt, figure)


def _plot_reliability(numbers: Numbers) -> Plot | None:
    """Accuracy against confidence, and below it the number of rows in each bin."""
    calibration = numbers["calibration"]
    if calibration is None:
        return None
    bins = calibration["bins"]
    confidence = [100 * b["confidence"] for b in bins]
    accuracy = [100 * b["accuracy"] for b in bins]
    starts = [100 * b["from"] for b in bins]
    figure = Figure(figsize=(WIDTH_INCHES, 3.7), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="ideal")
    axes.vlines(
        confidence,
        np.minimum(confidence, accuracy),
        np.maximum(confidence, accuracy),
        color=OTHER,
        alpha=0.6,
        linewidth=2,
    )
    axes.plot(confidence, accuracy, color=OWN, marker="o", markersize=5, label="this run")
    axes.set_ylabel("right, %")
    axes.set_ylim(-3, 103)
    axes.legend(loc="lower right")
    below.bar(
        starts,
        [b["rows"] for b in bins],
        width=100 / 15,
        align="edge",
        color=INK,
        alpha=0.55,
        edgecolor="none",
    )
    below.set_xlim(max(0, min(starts, default=0.0) - 5), 102)
    below.set_xlabel("confidence, %")
    below.set_ylabel("rows" if calibration["of"] == "answers" else "asked")
    alt = (
        f"Expected calibration error {write_score(calibration['ece'], 'ece')} points over "
        f"{len(bins)} bins of confidence."
    )
    return Plot("Confidence against accuracy", alt, figure)


def _plot_scatter(numbers: Numbers) -> Plot | None:
    """Predictions against targets, of tasks whose answer is a number."""
    points = [(x, y) for x, y in numbers["points"] if x is not None and y is not None]
    if not points:
        return None
    figure, axes = _new_axes(3.8)
    targets = np.array([target for target, _ in points])
    predictions = np.array([predicted for _, predicted in points])
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--")
    axes.scatter(targets, predictions, s=16, color=OWN, alpha=0.55, edgecolors="none")
    axes.set_xlabel("target")
    axes.set_ylabel("predicted")
    alt = f"{len(points)} rows; on the dashed line the prediction is the target."
    return Plot("Predicted against target", alt, figure)


def _plot_lengths(numbers: Numbers) -> Plot:
    """How long training and test texts are."""
    lengths = numbers["lengths"]
    unit = lengths["unit"]
    figure, axes = _new_axes(2.6)
    descriptions = []
    for (part, of_part), colour in zip(lengths["parts"].items(), (INK, OWN), strict=False):
        axes.stairs(
            100 * np.array(of_part["rows"]) / of_part["counted"],
            lengths["edges"],
            color=colour,
            label=part,
            linewidth=1.6,
            fill=False,
        )
        median = write_plain(of_part["median"])
        descriptions.append(f"{part} median {median}, longest {of_part['longest']}")
    limit = lengths["limit"]
    if limit is not None and limit <= lengths["edges"][-1]:
        axes.axvline(limit, color=OTHER, linewidth=1.2, linestyle=":", label=f"max_length: {limit}")
    axes.set_xlabel(unit)
    axes.set_ylabel("rows, %")
    axes.legend()
    alt = f"Length in {unit}: {write_list(descriptions)}."
    return Plot(f"Length of the texts in {unit}", alt, figure)
