"""What an experiment is: a file in experiments/ that holds only what differs from the defaults."""

import dataclasses
import difflib
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, get_args

FOLDER = Path(__file__).parent / "experiments"
# The systems that peftcls is compared with by default, and others that an experiment can name.
SYSTEMS = {"heads": ("trainer", "trainer_best"), "instructions": ("trl", "trl_best")}
MORE_SYSTEMS = {
    "heads": ("pad_to_max",),
    "instructions": ("trl_float32", "trl_packing", "trl_liger", "generate", "generate_best"),
}
FAST_PATHS = (
    "bfloat16",
    "kernels",
    "packing",
    "last_layer",
    "prefix",
    "frozen_cache",
    "cuts",
    "logits",
    "cuda_graphs",
)
# These do nothing on a machine that is not faster in bfloat16.
BFLOAT16_PATHS = {"bfloat16"}
Measure = Literal["rows_per_second", "rows_per_second_in_all", "predict_rows_per_second"]
Run = dict[str, Any]
Runs = dict[str, list[Run]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison: what is trained, on what, and against which systems.

    Args:
        kind: "heads" (LoRA and a classification head) or "instructions" (LoRA on a causal language
            model, closed labels).
        base: "minilm", or a shape in `material.SHAPES`, whose weights are random.
        texts: "sms" or "abstracts".
        systems: the systems that peftcls is compared with; the default ones of the kind if empty,
            and none if it is ["peftcls"].
        without: also peftcls without these of its fast paths, a list of lists.
        trained: "all-layers" (LoRA), "top2" (LoRA in the two top layers) or "head" (the head only).
        instructions: how often the instruction of about 64 tokens is repeated before every text.
        rows: the first rows of the training file, or drawn from all where it has fewer; a multiple
            of `batch_size`.
        epochs: 0 for answers without training.
        batch_size: rows of an optimizer step.
        max_length: tokens of a text that a head reads.
        words: join texts until they have so many words, so that all of them fill `max_length`.
        predict: time the answers to the same rows too.
        score: accuracy and macro-F1 at the end, on the test file (abstracts: the validation file).
        target: an accuracy on the validation file; the time until an evaluation reaches it is kept.
        eval_every: steps between the evaluations for it.
        dtype: of peftcls's base; the faster one of this machine unless given.
        rate: the peak of the learning rate, which falls linearly to zero.
        seeds: one turn each; the order of the systems is reversed in every second turn.
        warm_steps: first steps that are not timed: kernels are built and memory is allocated.
        gate_rows: rows of the step on which loss and gradient are compared; 0 if another experiment
            has compared them.
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
        problems = [*self._choice_problems(), *self._size_problems()]
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _choice_problems(self) -> list[str]:
        """Values that are not among the allowed ones."""
        systems = (*SYSTEMS.get(self.kind, ()), *MORE_SYSTEMS.get(self.kind, ()), "peftcls")
        choices: list[tuple[str, Any, Any]] = [
            ("kind", self.kind, SYSTEMS),
            ("texts", self.texts, ("sms", "abstracts")),
            ("dtype", self.dtype, (None, "float32", "bfloat16")),
            ("trained", self.trained, ("all-layers", "top2", "head")),
            ("measure", self.measure, get_args(Measure)),
        ]
        choices += [("systems", system, systems) for system in self.systems]
        for paths in self.without:
            choices += [("without", path, FAST_PATHS) for path in paths]
        return [
            f"{name}={value!r}: expected one of {list(allowed)}"
            for name, value, allowed in choices
            if value not in allowed
        ]

    def _size_problems(self) -> list[str]:
        """Numbers of rows and epochs that give no comparison."""
        problems = []
        if self.rows < 1 or self.rows % self.batch_size:
            problems.append(
                f"rows={self.rows}: expected a multiple of batch_size={self.batch_size}, "
                "so that all see the same steps"
            )
        elif self.epochs > 0 and self.rows // self.batch_size * self.epochs <= self.warm_steps:
            problems.append(
                f"rows={self.rows}: expected more than {self.warm_steps} steps, which are not timed"
            )
        if not self.epochs and not self.predict:
            problems.append("epochs=0: expected predict=true, or there is nothing to time")
        return problems

    @property
    def contenders(self) -> tuple[str, ...]:
        """The systems that peftcls is compared with."""
        systems = self.systems or SYSTEMS[self.kind]
        return tuple(name for name in systems if name != "peftcls")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """An experiment from the content of a file.

        Raises:
            ValueError: a setting does not exist, or has a wrong value.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - names)
        if unknown:
            similar = difflib.get_close_matches(unknown[0], names, 1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"expected {sorted(names)}."
            raise ValueError(f"there is no setting {unknown[0]!r}; {hint}")
        values = {}
        for name, value in settings.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        values["without"] = tuple(tuple(paths) for paths in settings.get("without", ()))
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        what: "machine", "adapter", "gate" or "run".
        experiment: its settings.
        data: the folder of the data sets.
        cache: the folder of random bases, and of files that processes exchange.
        system: the system that is run.
        without: fast paths that peftcls leaves out.
        seed: of new weights, of the order of the rows, and of dropout.
        bf16: for a gate, compare in bfloat16; for a run, the machine is faster in bfloat16.
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
        fields = dataclasses.asdict(self)
        fields["data"] = str(self.data)
        fields["cache"] = str(self.cache)
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        fields = json.loads(text)
        fields["experiment"] = Experiment.of(fields["experiment"])
        fields["data"] = Path(fields["data"])
        fields["cache"] = Path(fields["cache"])
        fields["without"] = tuple(fields["without"])
        return cls(**fields)

    @property
    def adapter(self) -> Path:
        """The file of initial tensors that all systems share; for a gate, without zeros."""
        e = self.experiment
        moved = " moved" if self.what == "gate" else ""
        return self.cache / f"adapter {e.kind} {e.base} {e.trained} {self.seed}{moved}.safetensors"

    @property
    def gradient(self) -> Path:
        """The file with the gradient of a gate's step."""
        dtype = "bf16" if self.bf16 else "float32"
        return self.cache / f"gradient {self.system} {dtype}.safetensors"


def ratios(runs: Runs, measure: str) -> dict[str, list[float]]:
    """How many times faster peftcls is than each other system.

    Returns:
        By system: the ratio of the medians, then the smallest and largest of any two runs.
    """
    rates = {}
    for name, system_runs in runs.items():
        rates[name] = [run[measure] for run in system_runs if run.get(measure)]
    ours = rates.pop("peftcls")
    factors = {}
    for name, theirs in rates.items():
        if ours and theirs:
            pairs = [a / b for a, b in product(ours, theirs)]
            ratio = statistics.median(ours) / statistics.median(theirs)
            factors[name] = [ratio, min(pairs), max(pairs)]
    return factors


def score_parity(runs: Runs, contender: str, score: str) -> dict[str, Any]:
    """Whether peftcls's mean score is not lower than the contender's by more than seeds vary."""
    ours = [run["scores"][score] for run in runs["peftcls"]]
    theirs = [run["scores"][score] for run in runs[contender]]
    spread = max(max(ours) - min(ours), max(theirs) - min(theirs))
    difference = statistics.mean(ours) - statistics.mean(theirs)
    return {
        "score": score,
        "peftcls": ours,
        contender: theirs,
        "difference": difference,
        "spread": spread,
        "passed": difference >= -spread,
    }
