"""A frozen base whose layers are spread over several GPUs of one process.

Accelerate's hooks carry what a layer reads to the GPU that holds it. Everything that is no layer,
such as embeddings, norms and heads, is on the first GPU, and the states come back there: whatever
reads them, a head or a loss, sees one device. One GPU computes at a time.
"""

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from peftcls.engine.layers import layers_of, named_layers
from peftcls.engine.model_choices import DeviceMap, Quantize
from peftcls.engine.model_state import state_of

logger = logging.getLogger("peftcls")

FREE_SHARE = 0.8
"""Of the free memory of a GPU, the share that weights may take; activations need the rest."""
GIB = 2**30
Devices = tuple[torch.device, ...]


def check_device_map(
    device_map: DeviceMap | None, *, quantize: Quantize | None, shard: bool | None
) -> None:
    """Check whether a base can be spread over the GPUs of this process.

    Args:
        device_map: as of `load_base`.
        quantize: as of `load_base`.
        shard: as of `load_base`.

    Raises:
        ValueError: it cannot.
    """
    if device_map is None:
        return
    if device_map != "auto":
        raise ValueError(f"device_map={device_map!r}: expected None or 'auto'.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"device_map='auto' with {processes} processes: it spreads a base over all GPUs, for "
            "one process alone; start one, or use shard=True, with which all GPUs compute at once."
        )
    if shard:
        raise ValueError(
            "device_map='auto' with shard=True: both divide a base among GPUs; use shard=True for "
            "several processes, device_map='auto' for one."
        )
    if quantize:
        raise ValueError(
            f"quantize={quantize!r} with device_map='auto': weights in 8 or 4 bits are held on one "
            "GPU; choose one of the two."
        )


def spread_over_gpus(model: PreTrainedModel) -> None:
    """Spread a model's layers over the GPUs of this process; with fewer than two it stays whole.

    Raises:
        ValueError: the model has no list of layers, or the GPUs have too little room for it.
    """
    gpus = torch.cuda.device_count()
    if gpus < 2:
        logger.info(
            "device_map='auto' with %s: the base is held whole.", "one GPU" if gpus else "no GPU"
        )
        return
    room = {}
    for number in range(gpus):
        free, _ = torch.cuda.mem_get_info(number)
        room[torch.device("cuda", number)] = int(FREE_SHARE * free)
    spread_layers(model, choose_devices(model, room), first=next(iter(room)))


def choose_devices(model: PreTrainedModel, room: Mapping[torch.device, int]) -> Devices:
    """The device of each layer: in their order, as many bytes on each as it has room in proportion.

    Args:
        model: without an adapter.
        room: bytes that weights may take on each device; the first one also gets all that is no
            layer.

    Raises:
        ValueError: the model has no list of layers, is an encoder with a decoder, or does not fit.
    """
    layers = layers_of(model.base_model)
    if not len(layers) or model.config.is_encoder_decoder:
        raise ValueError(
            f"device_map='auto' with {type(model).__name__}: expected a model with one list of "
            "layers; leave device_map out."
        )
    sizes = [_bytes_of(layer) for layer in layers]
    total = _bytes_of(model)
    available = sum(room.values())
    taken = dict.fromkeys(room, 0)
    order = list(room)
    taken[order[0]] = total - sum(sizes)
    devices = []
    number = 0
    for size in sizes:
        # A layer goes to the next device where less than half of it belongs to this one.
        while (
            number + 1 < len(order)
            and taken[order[number]] + size / 2 > total * room[order[number]] / available
        ):
            number += 1
        taken[order[number]] += size
        devices.append(order[number])
    if any(taken[device] > room[device] for device in order):
        raise ValueError(
            f"device_map='auto': the base takes {total / GIB:.1f} GiB, and its {len(order)} GPUs "
            f"have room for {available / GIB:.1f} GiB of weights. Parts of it on the CPU or the "
            "disk cannot be trained around; use more GPUs, or quantize='4bit' on one."
        )
    return tuple(devices)


def _bytes_of(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def spread_layers(
    model: PreTrainedModel, devices: Sequence[torch.device], *, first: torch.device
) -> None:
    """Put each layer of a model on a device, and all else on the first one.

    Args:
        model: the transformers model; an adapter may be in it already.
        devices: of each layer, in order.
        first: the device of all else.
    """
    name, layers = named_layers(model)
    place = dict(_outside(model, layers, "", _place(first)))
    place |= {f"{name}.{number}": _place(device) for number, device in enumerate(devices)}
    dispatch_model(
        model,
        place,
        main_device=_place(first),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )
    back = functools.partial(_bring_back, first, model._skip_keys_device_placement)
    model.base_model.register_forward_hook(back)
    state_of(model).devices = tuple(devices)


def _outside(
    module: torch.nn.Module, layers: torch.nn.ModuleList, name: str, place: int | str
) -> Iterator[tuple[str, int | str]]:
    """The modules beside the layers, each as large as it can be without one of them."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for tensor_name, tensor in own:
        # Accelerate moves modules, and not what belongs to one that has layers in it.
        tensor.data = tensor.data.to(place)
        yield f"{name}.{tensor_name}".lstrip("."), place
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}".lstrip(".")
        if child is layers:
            continue
        if any(inside is layers for inside in child.modules()):
            yield from _outside(child, layers, full_name, place)
        else:
            yield full_name, place


def _place(device: torch.device) -> int | str:
    """A device as Accelerate names it."""
    return device.type if device.index is None else device.index


def _bring_back(
    first: torch.device, skipped: Any, _: torch.nn.Module, inputs: Any, output: Any
) -> Any:
    """Carry what a backbone returns to the first device; keys and values stay with their layers."""
    return send_to_device(output, first, skip_keys=skipped)
