"""The figures of a report: drawn once, in middle tones that stand on a light and on a dark page, as SVG and as PNG."""

import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from peftcls.report.numbers import Numbers
from peftcls.report.wording import is_share, score_title, write_list, write_plain, write_score

INK, OWN, OTHER, RIM = "#787d86", "#3f7fd0", "#c4761d", "#1f3f68"
THEMED = {
    INK: "var(--muted)",
    OWN: "var(--own)",
    OTHER: "var(--other)",
}  # inside the page, its colours
WIDTH, HEIGHT, DPI = 4.4, 2.8, 200  # inches, and the PNG's dots to an inch
LONGEST_NAME, MOST_LABELS = 44, 40
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


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure for the page and for other papers, with its title and what it shows in words."""

    title: str
    alt: str
    svg: str
    png: bytes


def draw_figures(numbers: Numbers) -> dict[str, Drawing]:
    """The figures that the numbers allow, by name."""
    drawers: dict[str, Callable[[Numbers], tuple[str, str, Figure] | None]] = {
        "systems": _systems,
        "loss": _loss,
        "validation": _validation,
        "confusion": _confusion,
        "reliability": _reliability,
        "scatter": _scatter,
        "lengths": _lengths,
    }
    drawn = {}
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*[Gg]lyph.*missing"
        )  # a label in a script that the PNG's font lacks
        for name, draw in drawers.items():
            if (made := draw(numbers)) is not None:
                title, alt, figure = made
                svg, png = io.BytesIO(), io.BytesIO()
                figure.savefig(
                    svg,
                    format="svg",
                    metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
                )
                figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
                drawn[name] = Drawing(
                    title, alt, _inline(svg.getvalue(), name, alt), png.getvalue()
                )
    return drawn


def _inline(svg: bytes, name: str, alt: str) -> str:
    """An SVG as a part of a page: colours of the page, ids of its own, no address of anything."""
    root = ET.fromstring(svg)
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in [c for c in parent if c.tag.endswith("}metadata")]:
            parent.remove(child)
        for key, value in list(parent.attrib.items()):
            del parent.attrib[key]
            for colour, themed in THEMED.items():
                value = value.replace(colour, themed)
            value = re.sub(r"url\(#", f"url(#{name}-", value)
            plain = key.rpartition("}")[2]
            value = (
                f"{name}-{value}"
                if plain == "id"
                else value.replace("#", f"#{name}-")
                if plain == "href"
                else value
            )
            parent.set(plain, value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _name(text: Any, longest: int = LONGEST_NAME) -> str:
    """A name that a figure can hold: printable, and not too long."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _systems(numbers: Numbers) -> tuple[str, str, Figure]:
    score = numbers["score"]
    found = {
        name: scores[score]
        for name, scores in numbers["systems"].items()
        if scores[score][0] is not None
    }
    figure, axes = _axes(0.85 + 0.52 * len(found))
    factor = 100 if is_share(score) else 1
    for place, (name, (value, low, high)) in enumerate(found.items()):
        own, y = name == numbers["headline"]["system"], -place
        colour = OWN if own else INK
        axes.plot(
            [factor * low, factor * high],
            [y, y],
            color=colour,
            linewidth=5 if own else 3,
            alpha=0.45,
            solid_capstyle="round",
        )
        axes.plot([factor * value], [y], "o", color=colour, markersize=8 if own else 6)
        weight = "bold" if own else "normal"
        axes.text(
            0,
            y + 0.24,
            _name(name),
            transform=axes.get_yaxis_transform(),
            va="bottom",
            color=colour,
            weight=weight,
        )
        axes.text(
            1,
            y + 0.24,
            write_score(value, score),
            transform=axes.get_yaxis_transform(),
            va="bottom",
            ha="right",
            color=colour,
            weight=weight,
        )
    axes.set_ylim(-len(found) + 0.55, 0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    unit = f"{score_title(score)}{', %' if is_share(score) else ''}"
    axes.set_xlabel(unit)
    title = f"{score_title(score)} with 95 % intervals"
    said = write_list(
        [
            f"{name} {write_score(value, score)} ({write_score(low, score)} to {write_score(high, score)})"
            for name, (value, low, high) in found.items()
        ]
    )
    return title, f"{unit}, with 95 % intervals: {said}.", figure


def _loss(numbers: Numbers) -> tuple[str, str, Figure] | None:
    history = numbers["run"]["history"]
    train, valid = (
        [(e["step"], e[key]) for e in history if e.get(key) is not None]
        for key in ("loss", "valid_loss")
    )
    if not train:
        return None
    figure, axes = _axes()
    axes.plot(*zip(*train, strict=True), color=INK, label="training", marker="o", markersize=2.5)
    if valid:
        axes.plot(
            *zip(*valid, strict=True), color=OWN, label="validation", marker="o", markersize=4
        )
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    said = f"from {write_plain(train[0][1])} at step {train[0][0]} to {write_plain(train[-1][1])} at step {train[-1][0]}"
    return "Loss", f"Training loss {said}.", figure


def _validation(numbers: Numbers) -> tuple[str, str, Figure] | None:
    names = [
        n
        for n in numbers["headline_scores"]
        if any(e.get(f"valid_{n}") is not None for e in numbers["run"]["history"])
    ]
    if not names:
        return None
    figure, axes = _axes()
    said = []
    for name, colour in zip(names, (OWN, OTHER), strict=False):
        points = [
            (e["step"], e[f"valid_{name}"])
            for e in numbers["run"]["history"]
            if e.get(f"valid_{name}") is not None
        ]
        factor = 100 if is_share(name) else 1
        axes.plot(
            [s for s, _ in points],
            [factor * v for _, v in points],
            color=colour,
            marker="o",
            markersize=4,
            label=score_title(name),
        )
        said.append(
            f"{score_title(name)} from {write_score(points[0][1], name)} to {write_score(points[-1][1], name)}"
        )
    if (best := numbers["run"]["best_step"]) is not None:
        axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=f"kept: step {best}")
    axes.set_xlabel("step")
    axes.set_ylabel("%" if all(map(is_share, names)) else "score")
    axes.legend()
    return "Validation scores", f"Validation scores over the steps: {write_list(said)}.", figure


def _confusion(numbers: Numbers) -> tuple[str, str, Figure] | None:
    if (confusion := numbers["confusion"]) is None or len(confusion["right"]) > MOST_LABELS:
        return None
    counts = np.array(confusion["rows"])
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = max(3.0, 1.4 + 0.5 * len(confusion["given"]))
    figure, axes = _axes(side)
    figure.set_figwidth(side + 0.6)
    axes.grid(False)
    axes.imshow(
        np.ones_like(shares),
        cmap=mpl.colors.ListedColormap([OWN]),
        alpha=0.85 * shares,
        aspect="equal",
    )
    rim = [withStroke(linewidth=2.5, foreground=RIM)]  # the cells let the page shine through
    for (down, across), count in np.ndenumerate(counts):
        axes.text(
            across,
            down,
            str(count),
            ha="center",
            va="center",
            color="white" if count else INK,
            path_effects=rim if count else None,
        )
    axes.set_xticks(
        range(len(confusion["given"])),
        [_name(n, 18) for n in confusion["given"]],
        rotation=35,
        ha="right",
    )
    axes.set_yticks(range(len(confusion["right"])), [_name(n, 18) for n in confusion["right"]])
    axes.set_xlabel("answered")
    axes.set_ylabel("right")
    return (
        "Confusion",
        f"{int(np.trace(counts))} of {int(counts.sum())} rows are on the diagonal.",
        figure,
    )


def _reliability(numbers: Numbers) -> tuple[str, str, Figure] | None:
    if (found := numbers["calibration"]) is None:
        return None
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    sure, right = ([100 * b[key] for b in found["bins"]] for key in ("confidence", "accuracy"))
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="ideal")
    axes.vlines(
        sure, np.minimum(sure, right), np.maximum(sure, right), color=OTHER, alpha=0.6, linewidth=2
    )
    axes.plot(sure, right, color=OWN, marker="o", markersize=5, label="this run")
    axes.set_ylabel("right, %")
    axes.set_ylim(-3, 103)
    axes.legend(loc="lower right")
    below.bar(
        [100 * b["from"] for b in found["bins"]],
        [b["rows"] for b in found["bins"]],
        width=100 / 15,
        align="edge",
        color=INK,
        alpha=0.55,
        edgecolor="none",
    )
    least = min((b["from"] for b in found["bins"]), default=0.0)
    below.set_xlim(max(0, 100 * least - 5), 102)
    below.set_xlabel("confidence, %")
    below.set_ylabel("rows" if found["of"] == "answers" else "asked")
    return (
        "Confidence against accuracy",
        f"Expected calibration error {write_score(found['ece'], 'ece')} points over "
        f"{len(found['bins'])} bins of confidence.",
        figure,
    )


def _scatter(numbers: Numbers) -> tuple[str, str, Figure] | None:
    points = [(x, y) for x, y in numbers["points"] if x is not None and y is not None]
    if not points:
        return None
    figure, axes = _axes(3.8)
    target, predicted = (np.array(side) for side in zip(*points, strict=True))
    ends = [min(target.min(), predicted.min()), max(target.max(), predicted.max())]
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--")
    axes.scatter(target, predicted, s=16, color=OWN, alpha=0.55, edgecolors="none")
    axes.set_xlabel("target")
    axes.set_ylabel("predicted")
    return (
        "Predicted against target",
        f"{len(points)} rows; on the dashed line the prediction is the target.",
        figure,
    )


def _lengths(numbers: Numbers) -> tuple[str, str, Figure]:
    lengths = numbers["lengths"]
    figure, axes = _axes(2.6)
    for (part, found), colour in zip(lengths["parts"].items(), (INK, OWN), strict=False):
        axes.stairs(
            100 * np.array(found["rows"]) / found["counted"],
            lengths["edges"],
            color=colour,
            label=part,
            linewidth=1.6,
            fill=False,
        )
    if (limit := lengths["limit"]) is not None and limit <= lengths["edges"][-1]:
        axes.axvline(
            limit, color=OTHER, linewidth=1.2, linestyle=":", label=f"read at once: {limit}"
        )
    axes.set_xlabel(lengths["unit"])
    axes.set_ylabel("rows, %")
    axes.legend()
    said = write_list(
        [
            f"{part} median {write_plain(found['median'])}, longest {found['longest']}"
            for part, found in lengths["parts"].items()
        ]
    )
    return (
        f"Length of the texts in {lengths['unit']}",
        f"Length in {lengths['unit']}: {said}.",
        figure,
    )
