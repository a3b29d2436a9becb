"""The model card of a folder: what a reader on a hub, or next year's colleague, has to know, in the hub's own form."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from peftcls.evaluation import Evaluation
from peftcls.models.adapter_folder import ADAPTER_WEIGHTS, READABLE
from peftcls.models.folder_info import describe_folder, tell_adapter, tell_decisions

CARD = "README.md"
OWN = r"---\n(?:(?!\n---\n).)*?- peftcls\n"  # the tag in the metadata of every card of ours
PIPELINES = {
    "Classification": "text-classification",
    "Regression": "text-classification",
    "ExtractiveQA": "question-answering",
    "Instruction": "text-generation",
}
CLASSES = {
    "Classification": "AutoModelForSequenceClassification",
    "Regression": "AutoModelForSequenceClassification",
    "ExtractiveQA": "AutoModelForQuestionAnswering",
    "Instruction": "AutoModelForCausalLM",
}
METRICS = {
    "f1_macro": "f1",
    "f1_micro": "f1",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}  # as the hub calls them


def write_card(
    directory: str | Path,
    *,
    scores: Evaluation | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write the README.md of an adapter folder, from the folder itself; it holds no date and no path.

    A README.md that is no such card is somebody's own and is left alone.

    Args:
        directory: written by `save_adapter`.
        scores: on test rows, of `evaluate_answers`.
        about: what else is known, a line each: {"test rows": "120 rows of papers.csv"}; "test rows" names the rows of `scores`.

    Raises:
        ValueError: the folder is incomplete or damaged.
    """
    facts, about, path = describe_folder(directory), dict(about or {}), Path(directory) / CARD
    if path.is_file() and not is_own_card(path):
        return path
    task, adapter = facts["task"], facts["weights"] == ADAPTER_WEIGHTS
    data = _data(
        facts,
        "peft" if adapter else "transformers",
        ["peftcls", *(["peft", facts["adapter"]["method"]] if adapter else [])],
    )
    if scores is not None:
        rows = about.get("test rows", "held-out rows")
        data.model_name, data.metrics = (
            _title(facts),
            list(dict.fromkeys(METRICS.get(name, name) for name in scores.scores)),
        )
        data.eval_results = [
            EvalResult(
                task_type=PIPELINES[task["name"]],
                dataset_type="held-out",
                dataset_name=rows,
                metric_name=name,
                metric_type=METRICS.get(name, name),
                metric_value=round(value, 4),
                metric_args={"interval_95": [round(end, 4) for end in scores.intervals[name]]},
            )
            for name, value in scores.scores.items()
        ]
    facts_told = {
        "base": base_told(facts),
        "trained": tell_adapter(facts),
        "labels, in the order of the outputs": _labels(task),
        "decisions": tell_decisions(task),
        **about,
        "base fingerprint": facts["base"]["fingerprint"],
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    }
    parts = [
        f"# {_title(facts)}",
        "\n".join(f"- {name}: {text}" for name, text in facts_told.items() if text),
        "## Scores",
        _scores(scores, about),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(facts)),
        "## Load",
        _loading(facts, adapter=adapter),
    ]
    if facts["lineage"]:
        old = "\n".join(
            f"{number}. `{one['folder']}` ({one['sum'][:12]})"
            for number, one in enumerate(facts["lineage"], 1)
        )
        parts += ["## Learnt on from", old]
    return _write(path, data, parts)


def is_own_card(path: Path) -> bool:
    """Whether a README.md is a model card of peftcls, which may be written anew."""
    return re.match(OWN, path.read_text(encoding="utf-8", errors="replace"), re.DOTALL) is not None


def write_merged_card(out: str | Path, facts: Mapping[str, Any], remarks: Sequence[str]) -> Path:
    """Write the README.md of a model with its adapter merged in; `facts` are those of the adapter folder."""
    task = facts["task"]
    name = CLASSES[task["name"]]
    code = (
        f'```python\nfrom transformers import AutoTokenizer, {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
    )
    told = {
        "base": base_told(facts),
        "merged": tell_adapter(dict(facts)),
        "labels, in the order of the outputs": _labels(task),
        "sum of the adapter folder": facts["sum"],
    }
    parts = [
        f"# {_title(facts)}, merged",
        "\n".join(f"- {key}: {text}" for key, text in told.items() if text),
        "## Load",
        code,
    ]
    if remarks:
        parts += [
            "## What plain transformers does otherwise than peftcls",
            "\n".join(f"- {remark}" for remark in remarks),
        ]
    return _write(Path(out) / CARD, _data(facts, "transformers", ["peftcls"]), parts)


def hub_name(base: Mapping[str, Any]) -> str | None:
    """The base's name on the hub; None where it ships with peftcls or lies in a folder."""
    try:
        validate_repo_id(base["name"])
    except HFValidationError:
        return None
    return str(base["name"]) if base["revision"] else None  # a folder has no revision


def base_told(facts: Mapping[str, Any]) -> str:
    """The base in a few words; of a folder only its own name, since the path is nobody else's business."""
    base = facts["base"]
    where = (
        f"`{hub_name(base)}` at revision `{base['revision']}`"
        if hub_name(base)
        else (
            "the model that ships with peftcls (`demo`)"
            if base["name"] == "demo"
            else f"a local folder called `{Path(base['name']).name}`"
        )
    )
    held = (
        f", held in {base['quantize'].removesuffix('bit')} bits at training"
        if base["quantize"]
        else ""
    )
    return (
        where
        + held
        + (", with random weights as a control" if base.get("random_seed") is not None else "")
    )


def _data(facts: Mapping[str, Any], library: str, tags: list[str]) -> ModelCardData:
    return ModelCardData(
        base_model=hub_name(facts["base"]),
        library_name=library,
        pipeline_tag=PIPELINES[facts["task"]["name"]],
        tags=tags,
    )


def _title(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['task']['name']} on {hub_name(facts['base']) or Path(facts['base']['name']).name}"
    )


def _labels(task: Mapping[str, Any]) -> str:
    return ", ".join(f"`{label}`" for label in task.get("labels") or ())


def _scores(scores: Evaluation | None, about: Mapping[str, str]) -> str:
    if scores is None:
        return "None are stored with this folder. Measure it on rows of yours that it has not learnt: `peftcls evaluate FOLDER rows.csv`."
    lines = [
        f"| {name} | {value:.4f} | {scores.intervals[name][0]:.4f} to {scores.intervals[name][1]:.4f} |"
        for name, value in scores.scores.items()
    ]
    rows = f"On {scores.rows} test rows ({about.get('test rows', 'held-out rows')}):"
    return "\n".join(
        [rows, "", "| score | value | 95 % bootstrap interval |", "|---|---|---|", *lines]
    )


def _limits(facts: Mapping[str, Any]) -> list[str]:
    """What the folder cannot do, as far as its settings tell."""
    task = facts["task"]
    name, limits = task["name"], []
    if task.get("labels") and not task.get("multi_label"):
        abstains = (task.get("decisions") or {}).get("abstain_below") is not None
        limits.append(
            "It knows the labels above and no other: a text that belongs to none of them "
            + (
                "gets one of them, or none where the model is too unsure."
                if abstains
                else "gets one of them all the same."
            )
        )
    if task.get("labels") and (task.get("decisions") or {}).get("temperature", 1.0) == 1.0:
        limits.append(
            "Its probabilities were not calibrated; take them as an order, not as shares of right answers."
        )
    if name == "Regression":
        limits.append(
            f"Its numbers were learnt around {task['mean']:.4g} with a deviation of {task['deviation']:.4g}; far from there it "
            "guesses."
        )
    if name == "ExtractiveQA":
        always = (
            "a question may have none."
            if task["unanswerable"]
            else "every question gets one, whether the text holds it or not."
        )
        limits.append(
            f"An answer is at most {task['max_answer_tokens']} tokens of the given text, word for word; {always}"
        )
    elif task.get("long_text") == "windows":
        limits.append(
            f"Longer texts are read in windows of {task['max_length']} tokens, whose outputs are averaged."
        )
    else:
        limits.append(
            f"It reads at most {task['max_length']} tokens at once, or what the base can; the end of a longer text is not seen."
        )
    if name == "Instruction" and not task.get("labels"):
        limits.append("Its answers are generated: they can be wrong, or not in the text.")
    if facts["base"]["quantize"]:
        limits.append(
            "It was trained on a quantized base; on the same base in full precision its answers may move a little."
        )
    return [
        *limits,
        "It inherits what its base has learnt, and what is one-sided in the rows it was trained on. Texts of another kind, "
        "time or language than these rows were not tested.",
    ]


def _loading(facts: Mapping[str, Any], *, adapter: bool) -> str:
    base, task, folder = facts["base"], facts["task"], '"path/to/this/folder"'
    name, known = CLASSES[task["name"]], hub_name(base)
    elsewhere = known is None and base["name"] != "demo"
    where = (
        f'"{known}", revision="{base["revision"]}"'
        if known
        else '"path/to/the/base"'
        if elsewhere
        else "peftcls.demo.BASE_FOLDER"
    )
    named, causal = (
        task["name"] == "Classification",
        facts["base"]["causal"] and task["name"] in ("Classification", "Regression"),
    )
    moved = ', base="path/to/the/base"' if elsewhere else ""
    own = f"from peftcls import load_predictor\n\npredictor = load_predictor({folder}{moved})"
    if adapter:
        reader, put = (
            "from peft import PeftModel",
            "model = PeftModel.from_pretrained(model, folder)",
        )
    else:
        reader = "from safetensors.torch import load_file"
        put = f'model.load_state_dict(load_file(f"{{folder}}/{facts["weights"]}"), strict=False)'
    imports = [
        *(["import json", "from pathlib import Path", ""] if named else []),
        *([] if known or elsewhere else ["import peftcls.demo"]),
        reader,
        f"from transformers import AutoTokenizer, {name}",
    ]
    sized = {
        "Classification": ", id2label=names, label2id={label: n for n, label in names.items()}",
        "Regression": ", num_labels=1",
    }
    lines = [f"folder = {folder}", "tokenizer = AutoTokenizer.from_pretrained(folder)"]
    lines += (
        [
            'task = json.loads(Path(folder, "peftcls.json").read_text(encoding="utf-8"))["task"]',
            'names = dict(enumerate(task["labels"]))',
        ]
        if named
        else []
    )
    lines += [
        f'model = {name}.from_pretrained({where}{sized.get(task["name"], "")}, dtype="{base["dtype"]}")',
        put,
    ]
    lines += (
        [
            "model.config.pad_token_id = tokenizer.pad_token_id  # the head looks for the token before the padding"
        ]
        if causal
        else []
    )
    plain = "\n".join([*imports, "", *lines])
    return (
        f"With peftcls, which answers exactly as it was trained to, and refuses another base:\n\n```python\n{own}\n```\n\n"
        f"With {'plain PEFT' if adapter else 'plain transformers'}, which gives the weights alone; template, lengths and "
        f"decisions are in `peftcls.json`{_narrowed(base)}:\n\n```python\n{plain}\n```"
    )


def _narrowed(base: Mapping[str, Any]) -> str:
    """What the plain classes do otherwise with a narrow base, in the words that end a sentence."""
    return (
        ""
        if base["dtype"] in ("float32", "float64")
        else f", and a head that was trained in float32 is narrowed to {base['dtype']}"
    )


def _write(path: Path, data: ModelCardData, parts: Sequence[str]) -> Path:
    """Beside first, then in place."""
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".saving-", delete=False) as beside:
        beside.write(str(card).encode())
    os.chmod(beside.name, READABLE)
    os.replace(beside.name, path)
    return path
