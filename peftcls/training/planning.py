"""Plan the memory of a training from the configuration of its base, before anything is loaded."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.engine.kernels import batch_tokens
from peftcls.engine.layers import layers_of
from peftcls.engine.model_choices import Quantize
from peftcls.models.base_memory import (
    base_bytes,
    gathered_bytes,
    parameter_count,
    share_bytes,
    widest_linear_bytes,
)
from peftcls.models.fused_lora import unfuse_lora_layers
from peftcls.models.lora_injection import DEFAULT_RANK, attach_lora
from peftcls.models.skeleton import read_skeleton
from peftcls.models.tokenizers import position_limit
from peftcls.models.trainable import checkpoint_layers, train_mode, trained_parameters
from peftcls.tasks.base import Task
from peftcls.tasks.instruction import Instruction
from peftcls.training.matrix_rate import measure_matrix_rate
from peftcls.training.memory_plan import GB, TERA, USABLE_SHARE, MemoryPlan, Way
from peftcls.training.step_cost import StepCost, step_cost

LABEL_TOKENS = 8
"""Positions with logits of a row whose answer is one of several labels."""
TRAINED_BYTES = 4
"""Of a trained parameter, and of its gradient: both are float32."""
ADAMW_BYTES = 8
"""Of a trained parameter: AdamW keeps two moments in float32 (Kingma and Ba 2015, algorithm 1)."""
TargetNames = Literal["attention", "all-linear"] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a plan is for, with all defaults filled in."""

    name: str | Path
    task: Task
    gpus: int
    gpu_bytes: int
    adapter: dict[str, Any]
    micro_batch_tokens: int | None
    gradient_checkpointing: bool
    dtype: torch.dtype
    tokens: int | None
    flops: float | None
    rate_is_measured: bool


@dataclasses.dataclass(frozen=True)
class _Placement:
    """A way to place a training, before it is known whether it fits."""

    name: str
    processes: int
    base: dict[str, int]
    cost: StepCost
    quantize: Quantize | None = None
    in_shares: bool = False


@names_arguments
def plan_memory(
    name: str | Path,
    task: Task,
    *,
    gpus: int | None = None,
    gpu_memory: float | None = None,
    rank: int = DEFAULT_RANK,
    targets: TargetNames | None = None,
    layers: Sequence[int] | None = None,
    micro_batch_tokens: int | None = None,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    tokens: int | None = None,
    tflops: float | None = None,
) -> MemoryPlan:
    """Plan the memory of a LoRA training, from the base's config.json: no weights are read or made.

    The model is built without memory and run once, to count what its operators keep. The plan is
    for rows of full length, without the fast paths that need less. Where no way fits, gradient
    checkpointing is planned too.

    Args:
        name: of a base, as for `load_base`; of a folder, config.json is enough.
        task: decides the head, the longest row (`max_length`) and the logits.
        gpus: how many GPUs one machine has; those of this machine unless given.
        gpu_memory: of each GPU, in GB (10^9 bytes); that of this machine's unless given.
        rank: as for `attach_lora`.
        targets: as for `attach_lora`.
        layers: as for `attach_lora`.
        micro_batch_tokens: as for `TrainConfig`; unless given its default, or as many as fit.
        gradient_checkpointing: as for `TrainConfig`.
        dtype: of the frozen weights.
        tokens: of a training, whose least time is computed.
        tflops: TFLOP/s of a GPU in matrix products; measured on this machine unless given.

    Raises:
        ValueError: there is no configuration, transformers does not know its model, or a number is
            missing or impossible.
    """
    arguments = {
        "name": name,
        "gpus": gpus,
        "gpu_memory": gpu_memory,
        "rank": rank,
        "targets": targets,
        "layers": layers,
        "micro_batch_tokens": micro_batch_tokens,
        "gradient_checkpointing": gradient_checkpointing,
        "tokens": tokens,
        "tflops": tflops,
    }
    check_argument_types(arguments, plan_memory)
    _check_positive(arguments)
    if not isinstance(task, Task):
        raise ValueError(f"task={task!r}: expected a task, such as Classification(...).")
    flops = None
    if tokens is not None:
        flops = tflops * TERA if tflops is not None else measure_matrix_rate(dtype)
    request = _Request(
        name=name,
        task=task,
        gpus=_gpus_of_this_machine() if gpus is None else gpus,
        gpu_bytes=round((_gb_of_this_machine() if gpu_memory is None else gpu_memory) * GB),
        adapter={"rank": rank, "targets": targets, "layers": layers},
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=gradient_checkpointing,
        dtype=dtype,
        tokens=tokens,
        flops=flops,
        rate_is_measured=tflops is None,
    )
    plan = _plan(request)
    if plan.simplest is None and not gradient_checkpointing:
        plan = _plan(dataclasses.replace(request, gradient_checkpointing=True))
    return plan


def _check_positive(arguments: dict[str, Any]) -> None:
    names = ("gpus", "gpu_memory", "rank", "micro_batch_tokens", "tokens", "tflops")
    wrong = [name for name in names if arguments[name] is not None and not arguments[name] > 0]
    if wrong:
        shown = ", ".join(f"{name}={arguments[name]!r}" for name in wrong)
        raise ValueError(f"{shown}: expected a number above 0.")


def _gpus_of_this_machine() -> int:
    if not torch.cuda.is_available():
        raise ValueError(
            "this machine has no GPU to count: say how many the training will have, such as gpus=8."
        )
    return torch.cuda.device_count()


def _gb_of_this_machine() -> float:
    if not torch.cuda.is_available():
        raise ValueError(
            "this machine has no GPU to ask: say how many GB of memory one will have, such as "
            "gpu_memory=80."
        )
    return torch.cuda.get_device_properties(0).total_memory / GB


def _plan(request: _Request) -> MemoryPlan:
    base = read_skeleton(request.name, request.task, dtype=request.dtype)
    row_tokens = min(request.task.max_length, position_limit(base))
    parameters = parameter_count(base)
    bases = _base_parts(base, request.gpus)
    model: Any = attach_lora(base, request.task, **request.adapter)
    if request.gradient_checkpointing:
        checkpoint_layers(model)
    train_mode(model)
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    cost = _cost(request, model, row_tokens)
    # On a quantized base the update is computed by PEFT's layers, in float32.
    unfuse_lora_layers(model)
    quantized_cost = _cost(request, model, row_tokens)
    placements = _placements(request, bases, cost, quantized_cost)
    return MemoryPlan(
        model=str(request.name),
        parameters=parameters,
        trained_parameters=trained,
        dtype=str(request.dtype).removeprefix("torch."),
        row_tokens=row_tokens,
        gradient_checkpointing=request.gradient_checkpointing,
        gpus=request.gpus,
        gpu_bytes=request.gpu_bytes,
        tokens=request.tokens,
        tflops=None if request.flops is None else request.flops / TERA,
        rate_is_measured=request.rate_is_measured,
        ways=tuple(_way(request, placement, trained, row_tokens) for placement in placements),
    )


def _base_parts(base: Any, gpus: int) -> dict[str, dict[str, int]]:
    """The bytes of the base in each way to hold it, with what is whole for a moment."""
    whole = {"base": base_bytes(base), "gathered": 0}
    shares = {"base": share_bytes(base, gpus), "gathered": gathered_bytes(base)}
    # bitsandbytes makes one matrix at a time whole, where it multiplies in full precision.
    one_matrix = widest_linear_bytes(base)
    parts = {
        "whole": whole,
        "8bit": {"base": base_bytes(base, "8bit"), "gathered": one_matrix},
        "4bit": {"base": base_bytes(base, "4bit"), "gathered": one_matrix},
    }
    if gpus > 1 and len(layers_of(base.base_model)):
        parts["shares"] = shares
    return parts


def _placements(
    request: _Request, bases: dict[str, dict[str, int]], cost: StepCost, quantized_cost: StepCost
) -> Iterator[_Placement]:
    """All ways, from the simplest on; what changes no weight of the base comes first."""
    gpus = request.gpus
    several = f" on {gpus} GPUs" if gpus > 1 else ""
    yield _Placement("one GPU", 1, bases["whole"], cost)
    if gpus > 1:
        yield _Placement(f"{gpus} plain processes", gpus, bases["whole"], cost)
    if "shares" in bases:
        yield _Placement(f"{gpus} shares", gpus, bases["shares"], cost, in_shares=True)
    yield _Placement(f"8 bits{several}", gpus, bases["8bit"], quantized_cost, "8bit")
    yield _Placement(f"4 bits{several}", gpus, bases["4bit"], quantized_cost, "4bit")


def _cost(request: _Request, model: Any, row_tokens: int) -> StepCost:
    """The cost of one row."""
    answer_tokens = 0
    if isinstance(request.task, Instruction):
        answer_tokens = LABEL_TOKENS if request.task.labels else request.task.max_new_tokens
    return step_cost(
        model,
        request.task,
        rows=1,
        row_tokens=row_tokens,
        answer_tokens=min(answer_tokens, row_tokens),
    )


def _way(request: _Request, placement: _Placement, trained: int, row_tokens: int) -> Way:
    """A placement with as many tokens at once as fit; with one row where none fit.

    A training halves its tokens by itself where memory runs out, and the plan does the same.
    """
    usable = USABLE_SHARE * request.gpu_bytes
    tokens = request.micro_batch_tokens or batch_tokens(torch.device("cuda"))
    while True:
        rows = max(1, tokens // row_tokens)
        parts = _parts(placement, trained, rows * row_tokens)
        fits = sum(parts.values()) <= usable
        if fits or rows == 1 or request.micro_batch_tokens is not None:
            break
        tokens //= 2
    seconds = None
    if request.tokens is not None and request.flops is not None:
        flops = placement.cost.flops / placement.cost.tokens * request.tokens
        seconds = flops / (request.flops * placement.processes)
    return Way(
        name=placement.name,
        processes=placement.processes,
        quantize=placement.quantize,
        in_shares=placement.in_shares,
        micro_batch_tokens=rows * row_tokens,
        parts=parts,
        fits=fits,
        seconds=seconds,
        command=_command(request, placement, max(tokens, row_tokens)),
    )


def _parts(placement: _Placement, trained: int, tokens: int) -> dict[str, int]:
    """The bytes of each part. All are there at once when the backward pass begins."""
    cost = placement.cost.for_tokens(tokens)
    return {
        **placement.base,
        "adapter": TRAINED_BYTES * trained,
        "gradients": TRAINED_BYTES * trained,
        "optimizer": ADAMW_BYTES * trained,
        "activations": cost.activation_bytes,
        "logits": cost.logit_bytes,
        "backward": cost.backward_bytes,
    }


def _command(request: _Request, placement: _Placement, tokens: int) -> str:
    """The command that starts a training in this way, with FILE and DIR to fill in."""
    command = ["peftcls"]
    if placement.processes > 1:
        count = str(placement.processes)
        command = ["torchrun", "--standalone", "--nproc-per-node", count, "-m", "peftcls"]
    command += ["train", "FILE", "--model", str(request.name)]
    if placement.in_shares:
        command.append("--shard")
    if placement.quantize is not None:
        command += ["--quantize", placement.quantize]
    command += _adapter_options(request.adapter)
    command += ["--max-length", str(request.task.max_length)]
    if tokens != batch_tokens(torch.device("cuda")):
        command += ["--micro-batch-tokens", str(tokens)]
    if request.gradient_checkpointing:
        command.append("--gradient-checkpointing")
    return shlex.join([*command, "--out", "DIR"])


def _adapter_options(adapter: dict[str, Any]) -> Iterator[str]:
    """The options of an adapter that differ from the defaults."""
    if adapter["rank"] != DEFAULT_RANK:
        yield from ("--rank", str(adapter["rank"]))
    targets = adapter["targets"]
    if targets is not None:
        yield from ("--targets", targets if isinstance(targets, str) else ",".join(targets))
    if adapter["layers"] is not None:
        yield from ("--layers", ",".join(map(str, adapter["layers"])))
