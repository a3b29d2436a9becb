"""A frozen base in shares: each process holds a part of every layer.

A layer is gathered while it computes, and let go afterwards (Rajbhandari et al. 2020, "ZeRO",
section 5.3; Zhao et al. 2023, "PyTorch FSDP", section 3). Only frozen weights are in shares.
What is trained is whole in every process, so gradients, optimizer, checkpoints and adapter folders
are those of processes that hold the whole base.

To gather is to wait for the others: every process has to call the base equally often, in the same
order. A process with fewer micro-batches repeats one, without effect.
"""

import atexit
import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from peftcls.engine.allocator import map_large_blocks
from peftcls.engine.layers import layers_of
from peftcls.engine.lost_processes import PATIENT_SECONDS, CallWatch

SHARES = "fsdp"
"""The dimension of the mesh. Under another name PEFT would size its layers by their shares."""
MACHINES = "machines"
Item = TypeVar("Item")


@dataclasses.dataclass
class Shares:
    """The processes that hold a base together, and how often each has called it.

    Args:
        mesh: the processes of one machine, which hold one base.
        group: all processes of the run, for a few numbers at a time. It is a group of its own, so
            that these numbers never meet a layer that is being gathered.
        roots: where a forward pass begins: the backbone, and the output layer.
        calls: of the base, by this process.
    """

    mesh: DeviceMesh
    group: dist.ProcessGroup
    roots: list[FSDPModule] = dataclasses.field(default_factory=list, repr=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self._watch = CallWatch(lambda: self.calls, PartialState().process_index)

    def watched(self, where: str) -> AbstractContextManager[None]:
        """Notice another process that stalls, where the body calls the base again and again."""
        return self._watch.watching(where)

    def least_and_most(self, number: int) -> tuple[int, int]:
        """The smallest and the largest of all processes' numbers."""
        ends = torch.tensor([-number, number])
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self.group)
        return -int(ends[0]), int(ends[1])

    def wait(self) -> None:
        """Wait until every process has come as far."""
        dist.barrier(group=self.group)

    def padded(self, items: Iterable[Item]) -> list[Item | None]:
        """Items, and as many Nones behind them that every process has the same number."""
        items = list(items)
        _, most = self.least_and_most(len(items))
        return [*items, *[None] * (most - len(items))]

    @property
    def size(self) -> int:
        """How many processes hold one base together."""
        return self.mesh.size()

    def reset(self) -> None:
        """Let go of what is still gathered of a pass that was left before its end."""
        for root in self.roots:
            # An output layer that has not computed yet has nothing to let go of.
            if root._get_fsdp_state()._is_root:
                root.reset_iter_state()

    def check_calls(self, where: str) -> None:
        """Check that every process has called the base equally often.

        Args:
            where: for the message, such as "step 4".

        Raises:
            RuntimeError: they have not, so that what they gathered may not belong together.
        """
        fewest, most = self.least_and_most(self.calls)
        if fewest != most:
            raise RuntimeError(
                f"{where}: one process has called the base {fewest} times and another {most} "
                "times, but a base in shares must be called equally often by all. A task of your "
                "own has to call the model as often for any rows; otherwise please report it."
            )


def watching_others(shares: Shares | None, where: str) -> AbstractContextManager[None]:
    """`Shares.watched`, where a base is in shares."""
    return contextlib.nullcontext() if shares is None else shares.watched(where)


def join_machine() -> Shares:
    """Join the processes that the launcher has started on this machine.

    Raises:
        ValueError: the machines have unequal numbers of processes.
    """
    on_gpu = torch.accelerator.is_available()
    if not on_gpu:
        map_large_blocks()
    # On a machine without one, Accelerate finds other processes only if it is to use the CPU.
    processes = PartialState(cpu=not on_gpu, timeout=timedelta(seconds=PATIENT_SECONDS))
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENT_SECONDS))
    atexit.register(_leave, group)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes.num_processes))
    counts: list[int] = [0] * processes.num_processes
    dist.all_gather_object(counts, local, group=group)
    if len(set(counts)) > 1:
        raise ValueError(
            f"shard=True on machines with {min(counts)} and {max(counts)} processes: each machine "
            "holds the whole base in shares; start equally many on all."
        )
    machines = processes.num_processes // local
    mesh = init_device_mesh(
        processes.device.type, (machines, local), mesh_dim_names=(MACHINES, SHARES)
    )
    return Shares(mesh[SHARES], group)


def _leave(group: dist.ProcessGroup) -> None:
    """Leave the other processes at the end of a program that has not done so.

    The threads of a group would else be alive while the interpreter takes itself apart, and that
    now and then ends the program with SIGABRT.
    """
    if not dist.is_initialized():
        return
    is_on_cpu = dist.get_backend() == "gloo"
    dist.destroy_process_group(None if is_on_cpu else group)


# Laying out and reading


@contextlib.contextmanager
def reading_shares(shares: Shares, new_heads: bool) -> Iterator[dict[str, Any]]:
    """Let transformers read, of each weight of a base, the share of this process alone.

    transformers makes a model without weights, lays it out over processes by a method of its own,
    and reads what each process holds. In this context the layout is the one of `shard_layers`.

    Args:
        shares: the processes.
        new_heads: the model has a new head, which will be trained.

    Yields:
        Further arguments of `from_pretrained`.

    Raises:
        ValueError: the version of transformers cannot do it, or the model has no list of layers.
    """
    name = "maybe_distribute_model"
    if not hasattr(PreTrainedModel, name):
        raise ValueError("shard=True needs transformers 5.23 or newer; update it.")

    def lay_out(cls: type, model: Any, *_: Any) -> Any:
        model.config.distributed_config = None
        model.requires_grad_(False)
        shard_layers(model, shares, whole=_heads_of(model) if new_heads else [])
        return model

    inherited = name not in vars(PreTrainedModel)
    former = vars(PreTrainedModel).get(name)
    setattr(PreTrainedModel, name, classmethod(lay_out))
    try:
        copies = PartialState().num_processes // shares.size
        config = DistributedConfig(fsdp_size=shares.size, dp_replicate_size=copies)
        yield {"distributed_config": config}
    finally:
        if inherited:
            delattr(PreTrainedModel, name)
        else:
            setattr(PreTrainedModel, name, former)


@contextlib.contextmanager
def loading_in_every_process() -> Iterator[None]:
    """Keep transformers from leaving weights without values in all processes but the first."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    former = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if former is None:
            del os.environ[name]
        else:
            os.environ[name] = former


def shard_layers(model: Any, shares: Shares, whole: Sequence[torch.nn.Module]) -> None:
    """Hold a frozen base in shares: its layers, its token embeddings and its output layer.

    The backbone is the root, and not the language model around it, since a head reads the states of
    the backbone.

    Args:
        model: a transformers model, with or without weights yet. What is trained of it already
            stays whole in every process.
        shares: the processes.
        whole: modules that stay whole too, since they will be trained, or share a matrix.

    Raises:
        ValueError: the model has no list of layers, or is an encoder with a decoder.
    """
    backbone = model.base_model
    layers = layers_of(backbone)
    if not len(layers) or model.config.is_encoder_decoder:
        raise ValueError(
            f"shard=True with {type(model).__name__}: expected a model with one list of layers; "
            "leave shard out."
        )
    output = model.get_output_embeddings()
    # Of a layer with an adapter, the part that is frozen.
    output = getattr(output, "base_layer", output)
    ignored = {parameter for module in whole for parameter in module.parameters()}
    ignored |= {parameter for parameter in model.parameters() if parameter.requires_grad}
    shard = functools.partial(fully_shard, mesh=shares.mesh, reshard_after_forward=True)
    embeddings = backbone.get_input_embeddings()
    for module in (*layers, embeddings):
        shard(module, ignored_params=ignored)
    # What is left, norms and positions, is small and whole in every process. Gathered in a backward
    # pass, it would come before or after the last layer, by the padding of a batch.
    shares.roots = [shard(backbone, ignored_params=_not_in_shares(backbone))]
    if output is not None and not any(output is module for module in whole):
        shares.roots.append(shard(output, ignored_params=ignored))

    def count(*_: Any) -> None:
        shares.calls += 1

    backbone.register_forward_pre_hook(count)


def _not_in_shares(module: torch.nn.Module) -> set[torch.nn.Parameter]:
    return {p for p in module.parameters() if not isinstance(p, DTensor)}


def _heads_of(model: Any) -> list[torch.nn.Module]:
    """The children of a model that are neither its backbone nor its output layer."""
    output = model.get_output_embeddings()
    return [
        child
        for name, child in model.named_children()
        if name != model.base_model_prefix and child is not output
    ]


# Computing


def gather_for_backward(backbone: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    """Gather a layer when the gradient of its keys and values arrives.

    Keys and values leave a layer through a cache, and not as its result: the layer would not notice
    that its backward pass begins.

    Args:
        backbone: in shares; nothing happens with a whole one.
        tensors: keys and values, two for each layer.
    """
    if not isinstance(backbone, FSDPModule):
        return
    layers = layers_of(backbone)
    for number, tensor in enumerate(tensors):
        layer = layers[number // 2]
        if tensor.requires_grad and isinstance(layer, FSDPModule):
            tensor.register_hook(functools.partial(_gather, layer))


def _gather(layer: FSDPModule, _: torch.Tensor) -> None:
    layer.unshard()


def own_class(module: torch.nn.Module) -> type:
    """The class of a module as it was before it was held in shares."""
    return next(cls for cls in type(module).__mro__ if not issubclass(cls, FSDPModule))


def own_parts(
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name, as far as this process holds them."""
    for name, tensor in tensors:
        yield name, tensor.to_local() if isinstance(tensor, DTensor) else tensor
