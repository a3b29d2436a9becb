"""What an experiment is: a small file in experiments/ that holds only what differs from the defaults here."""

import dataclasses
import difflib
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, get_args

FOLDER = Path(__file__).parent / "experiments"
SYSTEMS = {"heads": ("trainer", "trainer_best"), "instructions": ("trl", "trl_best")}
MORE_SYSTEMS = {
    "heads": ("pad_to_max",),
    "instructions": ("trl_float32", "trl_packing", "trl_liger", "generate", "generate_best"),
}
FAST_PATHS = (
    "bfloat16",
    "attention",
    "norms",
    "packing",
    "last_layer",
    "prefix",
    "trunk",
    "cuts",
    "logits",
    "recording",
)
NARROW_PATHS = {
    "bfloat16",
    "attention",
}  # they do nothing where a machine is not faster in bfloat16
Measure = Literal["rows_per_second", "rows_per_second_in_all", "predict_rows_per_second"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison: what is trained, on what, and beside whom.

    Args:
        kind: "heads" (LoRA and a classification head) or "instructions" (LoRA on a causal language model, closed labels).
        base: "minilm", or a shape in `material.SHAPES`, whose weights are random.
        texts: "sms" or "abstracts".
        systems: whom peftcls is compared with; all of the kind unless given, and none where it is ["peftcls"].
        without: also peftcls without these of its fast paths, a list of lists.
        trained: "all-layers" (LoRA), "top2" (LoRA in the two layers at the top) or "head" (the head alone).
        instructions: how often the instruction of about 64 tokens is repeated in front of every text.
        rows: of the training file, its first, or drawn from all where it has fewer; a multiple of `batch_size`.
        epochs: 0 for answers without training.
        batch_size: rows of an optimizer step.
        max_length: tokens of a text that a head reads.
        words: join texts until they have so many words; so all of them fill `max_length`.
        predict: time the answers to the same rows too.
        score: accuracy and macro-F1 on the test file (of abstracts, the validation file) at the end.
        target: an accuracy on the validation file; how long until an evaluation reaches it is kept.
        eval_every: steps between the evaluations for it.
        dtype: of the base that peftcls holds; what the machine is faster in unless given.
        rate: the peak of the learning rate, which falls linearly to zero.
        seeds: one turn each; all systems take each turn, in one order and then in the other.
        warm_steps: first steps that are not timed, in which kernels are built and memory is laid out.
        gate_rows: rows of the step on which loss and gradient are compared; 0 where another experiment has done so.
        threads: of each process.
        limit_seconds: for one process.
        measure: what systems are compared by.
        points: settings that replace these, run by run, for a curve over one of them.
    """

    kind: Literal["heads", "instructions"]
    base: str
    texts: Literal["sms", "abstracts"] = "sms"
    systems: tuple[str, ...] = ()
    without: tuple[tuple[str, ...], ...] = ()
    trained: Literal["all-layers", "top2", "head"] = "all-layers"
    instructions: int = 1
    rows: int = 320
    epochs: int = 1
    batch_size: int = 16
    max_length: int = 256
    words: int = 0
    predict: bool = False
    score: bool = False
    target: float | None = None
    eval_every: int = 10
    dtype: Literal["float32", "bfloat16"] | None = None
    rate: float = 5e-4
    seeds: tuple[int, ...] = (0, 0)
    warm_steps: int = 2
    gate_rows: int = 8
    threads: int = 2
    limit_seconds: int = 1800
    measure: Measure = "rows_per_second"
    points: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        known = (*SYSTEMS.get(self.kind, ()), *MORE_SYSTEMS.get(self.kind, ()), "peftcls")
        problems = [
            f"{name}={value!r}: expected one of {list(allowed)}"
            for name, value, allowed in (
                ("kind", self.kind, SYSTEMS),
                ("texts", self.texts, ("sms", "abstracts")),
                ("dtype", self.dtype, (None, "float32", "bfloat16")),
                ("trained", self.trained, ("all-layers", "top2", "head")),
                ("measure", self.measure, get_args(Measure)),
                *(("systems", system, known) for system in self.systems),
                *(("without", path, FAST_PATHS) for paths in self.without for path in paths),
            )
            if value not in allowed
        ]
        if self.rows < 1 or self.rows % self.batch_size:
            problems.append(
                f"rows={self.rows}: expected a multiple of batch_size={self.batch_size}, so that all see the same steps"
            )
        elif self.epochs > 0 and self.rows // self.batch_size * self.epochs <= self.warm_steps:
            problems.append(
                f"rows={self.rows}: expected more than {self.warm_steps} steps, which are not timed"
            )
        if not self.epochs and not self.predict:
            problems.append("epochs=0: expected predict=true, or there is nothing to time")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    @property
    def contenders(self) -> tuple[str, ...]:
        """Whom peftcls is compared with."""
        return tuple(name for name in self.systems or SYSTEMS[self.kind] if name != "peftcls")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """From the content of a file. Raises ValueError for what is no setting."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - fields):
            near = difflib.get_close_matches(unknown[0], fields, 1)
            raise ValueError(
                f"there is no setting {unknown[0]!r}"
                + (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f", expected some of {sorted(fields)}."
                )
            )
        found = {**settings, "without": tuple(map(tuple, settings.get("without", ())))}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process is to do.

    Args:
        what: "machine", "adapter", "gate" or "run".
        experiment: its settings.
        system: who does it.
        without: fast paths that peftcls leaves out.
        seed: of weights that are new, of the order of the rows, of dropout.
        bf16: in bfloat16: for a gate that it is done in it, for a run that the machine is faster in it.
        data: the folder of the data sets.
        cache: the folder of random bases and of what processes hand one another.
    """

    what: Literal["machine", "adapter", "gate", "run"]
    experiment: Experiment
    data: Path
    cache: Path
    system: str = "peftcls"
    without: tuple[str, ...] = ()
    seed: int = 0
    bf16: bool = False

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(
            dataclasses.asdict(self) | {"data": str(self.data), "cache": str(self.cache)}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        found = json.loads(text)
        return cls(
            **found
            | {
                "experiment": Experiment.of(found["experiment"]),
                "data": Path(found["data"]),
                "cache": Path(found["cache"]),
                "without": tuple(found["without"]),
            }
        )

    @property
    def adapter(self) -> Path:
        """The file with the tensors that every system begins with; for a gate, moved away from a new adapter's zeros."""
        e = self.experiment
        return (
            self.cache
            / f"adapter {e.kind} {e.base} {e.trained} {self.seed}{' moved' if self.what == 'gate' else ''}.safetensors"
        )

    @property
    def gradient(self) -> Path:
        """The file with the gradient of a gate's step."""
        return (
            self.cache / f"gradient {self.system} {'bf16' if self.bf16 else 'float32'}.safetensors"
        )


def ratios(runs: dict[str, list[dict[str, Any]]], measure: str) -> dict[str, list[float]]:
    """By what factor peftcls is faster than each other system: of the medians, then the least and the most of any two runs."""
    rates = {
        name: [run[measure] for run in found if run.get(measure)] for name, found in runs.items()
    }
    found = {}
    for name, own in rates.items():
        if name != "peftcls" and own and rates["peftcls"]:
            pairs = [a / b for a, b in product(rates["peftcls"], own)]
            found[name] = [
                statistics.median(rates["peftcls"]) / statistics.median(own),
                min(pairs),
                max(pairs),
            ]
    return found


def score_parity(
    runs: dict[str, list[dict[str, Any]]], contender: str, score: str
) -> dict[str, Any]:
    """Whether the mean score of peftcls is the contender's, or higher, within the spread over the seeds of either."""
    own, other = ([run["scores"][score] for run in runs[name]] for name in ("peftcls", contender))
    spread = max(max(own) - min(own), max(other) - min(other))
    difference = statistics.mean(own) - statistics.mean(other)
    return {
        "score": score,
        "peftcls": own,
        contender: other,
        "difference": difference,
        "spread": spread,
        "passed": difference >= -spread,
    }
