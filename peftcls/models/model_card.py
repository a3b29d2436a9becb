"""The model card of a folder, in the hub's own form: what it is, how good it is, how to load it."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peftcls.evaluation import Evaluation
from peftcls.models.adapter_folder import READABLE, Folder, open_folder
from peftcls.models.folder_info import (
    folder_facts,
    tell_adapter,
    tell_decisions,
    tell_versions,
)
from peftcls.models.folder_safety import ADAPTER_WEIGHTS
from peftcls.models.named_bases import NAMED_BASES
from peftcls.tasks.base import Task

CARD = "README.md"
OWN_CARD = r"---\n(?:(?!\n---\n).)*?- peftcls\n"
"""The start of every card of peftcls: a tag in its metadata."""
HUB_METRICS = {
    "f1_macro": "f1",
    "f1_micro": "f1",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
"""The hub's names of metrics, where they are not the same."""
WIDE_DTYPES = ("float32", "float64")
LABEL_NAMES = ", id2label=names, label2id={label: n for n, label in names.items()}"
"""Arguments in the code of a card."""


def write_card(
    directory: str | Path | Folder,
    *,
    scores: Evaluation | None = None,
    about: Mapping[str, str] | None = None,
    tasks: Sequence[type[Task]] = (),
) -> Path:
    """Write the README.md of an adapter folder, from the folder itself; it has no date and no path.

    A README.md that peftcls did not write is left alone.

    Args:
        directory: written by `Trainer.save`, as a path or opened.
        scores: on test rows, of `evaluate_answers`.
        about: other facts, a line each: {"test rows": "120 rows of papers.csv"}; "test rows" names
            the rows of `scores`.
        tasks: your own task classes, beside the four built-in ones.

    Raises:
        ValueError: the folder is incomplete or damaged.
    """
    folder = directory if isinstance(directory, Folder) else open_folder(directory, tasks=tasks)
    facts = folder_facts(folder.directory, folder.manifest)
    path = folder.directory / CARD
    if path.is_file() and not is_own_card(path):
        return path
    about = dict(about or {})
    test_rows = about.get("test rows", "held-out rows")
    is_adapter = facts["weights"] == ADAPTER_WEIGHTS
    data = _hub_data(folder.task, facts, is_adapter=is_adapter)
    if scores is not None:
        _add_scores(data, scores, test_rows, _title(facts), folder.task.pipeline_tag)
    text = _render(
        "adapter_card.md.jinja",
        title=_title(facts),
        facts={
            "base": tell_base(facts),
            "trained": tell_adapter(facts),
            "labels, in the order of the outputs": _tell_labels(folder.task),
            "decisions": tell_decisions(facts["task"]),
            **about,
            "base fingerprint": facts["base"]["fingerprint"],
            "versions": tell_versions(facts),
        },
        scores=scores,
        test_rows=test_rows,
        limits=list(_limits(folder.task, facts)),
        is_adapter=is_adapter,
        weights=facts["weights"],
        base=_base_in_code(facts["base"]),
        lineage=facts["lineage"],
        **_model_in_code(folder.task, facts["base"]),
    )
    return _write(path, data, text)


def write_merged_card(
    out: str | Path, task: Task, facts: Mapping[str, Any], remarks: Sequence[str]
) -> Path:
    """Write the README.md of a model with its adapter merged in.

    Args:
        out: the folder of the merged model.
        task: of the adapter folder.
        facts: of the adapter folder, from `folder_facts`.
        remarks: what plain transformers does otherwise, a sentence each.
    """
    text = _render(
        "merged_card.md.jinja",
        title=_title(facts),
        facts={
            "base": tell_base(facts),
            "merged": tell_adapter(dict(facts)),
            "labels, in the order of the outputs": _tell_labels(task),
            "sum of the adapter folder": facts["sum"],
        },
        auto_model=task.auto_model.__name__,
        remarks=remarks,
    )
    data = ModelCardData(
        base_model=hub_name(facts["base"]),
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        tags=["peftcls"],
    )
    return _write(Path(out) / CARD, data, text)


def is_own_card(path: Path) -> bool:
    """Whether a README.md is a model card of peftcls, which may be overwritten."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.match(OWN_CARD, text, re.DOTALL) is not None


# Metadata for the hub


def _hub_data(task: Task, facts: Mapping[str, Any], *, is_adapter: bool) -> ModelCardData:
    tags = ["peftcls"]
    if is_adapter:
        tags += ["peft", facts["adapter"]["method"]]
    return ModelCardData(
        base_model=hub_name(facts["base"]),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task.pipeline_tag,
        tags=tags,
    )


def _add_scores(
    data: ModelCardData, scores: Evaluation, test_rows: str, title: str, pipeline_tag: str
) -> None:
    results = []
    metrics: list[str] = []
    for name, value in scores.scores.items():
        metric = HUB_METRICS.get(name, name)
        metrics.append(metric)
        interval = [round(end, 4) for end in scores.intervals[name]]
        results.append(
            EvalResult(
                task_type=pipeline_tag,
                dataset_type="held-out",
                dataset_name=test_rows,
                metric_name=name,
                metric_type=metric,
                metric_value=round(value, 4),
                metric_args={"interval_95": interval},
            )
        )
    data.model_name = title
    data.metrics = list(dict.fromkeys(metrics))
    data.eval_results = results


def hub_name(base: Mapping[str, Any]) -> str | None:
    """The base's name on the hub; None where it ships with peftcls or is in a folder."""
    try:
        validate_repo_id(base["name"])
    except HFValidationError:
        return None
    # A local folder has no revision.
    return str(base["name"]) if base["revision"] else None


# Sentences


def tell_base(facts: Mapping[str, Any]) -> str:
    """The base in a few words; a local folder by its own name only, since its path is private."""
    base = facts["base"]
    name = hub_name(base)
    if name:
        text = f"`{name}` at revision `{base['revision']}`"
    elif base["name"] == "demo":
        text = "the model that ships with peftcls (`demo`)"
    elif base["name"] in NAMED_BASES:
        named = NAMED_BASES[base["name"]]
        text = f"`{base['name']}`, which is `{named.hub}` from the package `{named.package}`"
    else:
        text = f"a local folder called `{Path(base['name']).name}`"
    if base["quantize"]:
        text += f", held in {base['quantize'].removesuffix('bit')} bits at training"
    if base.get("random_seed") is not None:
        text += ", with random weights as a control"
    return text


def _title(facts: Mapping[str, Any]) -> str:
    base = facts["base"]
    return f"{facts['task']['name']} on {hub_name(base) or Path(base['name']).name}"


def _tell_labels(task: Task) -> str:
    return ", ".join(f"`{label}`" for label in task.labels or ())


def _limits(task: Task, facts: Mapping[str, Any]) -> Iterator[str]:
    """What the folder cannot do, as far as its settings say."""
    fields = facts["task"]
    if task.labels:
        yield from _label_limits(task)
    if task.answer_kind == "number" and "deviation" in fields:
        yield (
            f"It was trained on numbers around {fields['mean']:.4g} with a deviation of "
            f"{fields['deviation']:.4g}; far from there it guesses."
        )
    if task.answer_kind == "span" and "max_answer_tokens" in fields:
        yield _span_limit(fields)
    elif task.reads_windows:
        yield (
            f"Longer texts are read in windows of {task.max_length} tokens, whose outputs are "
            "averaged."
        )
    elif task.max_length:
        yield (
            f"It reads at most {task.max_length} tokens at once, or what the base can; the end of "
            "a longer text is not seen."
        )
    if task.answer_kind in ("text", "keywords"):
        yield "Its answers are generated: they can be wrong, or not in the text."
    if facts["base"]["quantize"]:
        yield (
            "It was trained on a quantized base; on the same base in full precision its answers "
            "may move a little."
        )
    yield (
        "It inherits the biases of its base model and of the rows it was trained on. Texts of "
        "another kind, time or language than these rows were not tested."
    )


def _label_limits(task: Task) -> Iterator[str]:
    if not task.multi_label:
        ending = "gets one of them all the same."
        if task.decisions.abstain_below is not None:
            ending = "gets one of them, or none where the model is too unsure."
        yield (
            f"It knows the labels above and no other: a text that belongs to none of them {ending}"
        )
    if task.decisions.temperature == 1.0:
        yield (
            "Its probabilities were not calibrated; take them as an order, not as shares of right "
            "answers."
        )


def _span_limit(fields: Mapping[str, Any]) -> str:
    ending = "every question gets one, whether the text holds it or not."
    if fields.get("unanswerable"):
        ending = "a question may have none."
    return (
        f"An answer is at most {fields['max_answer_tokens']} tokens of the given text, word for "
        f"word; {ending}"
    )


# Code


def _base_in_code(base: Mapping[str, Any]) -> dict[str, Any]:
    """How the code of a card names the base, and what is special about it."""
    name = hub_name(base)
    is_demo = base["name"] == "demo" and not name
    named = NAMED_BASES.get(base["name"])
    if name:
        in_code = f'"{name}", revision="{base["revision"]}"'
    elif named:
        in_code = f'"{named.hub}"'
    elif is_demo:
        in_code = "peftcls.demo.BASE_FOLDER"
    else:
        in_code = '"path/to/the/base"'
    return {
        "in_code": in_code,
        "is_demo": is_demo,
        "is_elsewhere": not name and not is_demo and not named,
        "reads_mean": base.get("pooling") == "mean",
        "compares": base.get("pooling") == "compare",
        "is_narrow": base["dtype"] not in WIDE_DTYPES,
        "dtype": base["dtype"],
    }


def _model_in_code(task: Task, base: Mapping[str, Any]) -> dict[str, Any]:
    """How the code of a card makes the model with its head."""
    auto_model = task.auto_model.__name__
    has_label_names = task.new_head and bool(task.labels)
    settings = task.model_settings()
    head_size = ""
    if has_label_names:
        head_size = LABEL_NAMES
    elif "num_labels" in settings:
        head_size = f", num_labels={settings['num_labels']}"
    return {
        "auto_model": auto_model,
        "has_label_names": has_label_names,
        "head_size": head_size,
        "reads_token_before_padding": base["causal"]
        and auto_model == "AutoModelForSequenceClassification",
    }


# Files


def _render(template: str, **values: Any) -> str:
    """Fill in a template of this package. The result is Markdown, so nothing is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def _write(path: Path, data: ModelCardData, text: str) -> Path:
    """Write a card to a temporary file, and move it into place."""
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".saving-", delete=False) as temporary:
        temporary.write(str(card).encode())
    os.chmod(temporary.name, READABLE)
    os.replace(temporary.name, path)
    return path
