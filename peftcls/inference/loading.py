"""Load one adapter folder, or several that share a base model, for prediction."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from peftcls.argument_checks import check_argument_types
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_choices import DeviceMap, Quantize
from peftcls.engine.model_state import use_fast_paths
from peftcls.engine.turns import end_team
from peftcls.inference.int8_layers import in_int8
from peftcls.inference.multi_loading import load_on_one_base, move_to_device
from peftcls.inference.multi_predictor import ManyPredictor
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import load_adapter
from peftcls.models.pretrained_io import lasting_name
from peftcls.tasks.base import Task


@overload
def load_predictor(  # type: ignore[overload-overlap]
    directory: str | Path,
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
    tasks: Sequence[type[Task]] = (),
    fast_paths: FastPaths | None = None,
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
    int8: bool = False,
) -> Predictor: ...


@overload
def load_predictor(
    directory: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
    tasks: Sequence[type[Task]] = (),
    fast_paths: FastPaths | None = None,
) -> ManyPredictor: ...


def load_predictor(
    directory: str | Path | Sequence[str | Path],
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
    tasks: Sequence[type[Task]] = (),
    fast_paths: FastPaths | None = None,
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
    int8: bool = False,
) -> Predictor | ManyPredictor:
    """Load an adapter folder for prediction; only the folder and its base model are needed.

    Args:
        directory: written by `Trainer.fit` or `Trainer.save`; or a list of several, which then
            share one base in memory (see `ManyPredictor`).
        base: where the base model is now, if it moved; another model of the same shape is refused.
        quantize: "8bit" or "4bit"; as at training unless given.
        device: where to compute; unless given, the first GPU, an Apple GPU too, or the CPU where
            there is none.
        tasks: subclasses of `Task` that the folder may name, besides the four of peftcls.
        fast_paths: which fast paths may be used; all of them unless given.
        shard: hold the base in shares, one in each process of this machine, as `load_base` does.
            Every process then has to answer the same rows, and gets all answers.
        device_map: "auto" spreads the base over the GPUs of this process, as `load_base` does.
        int8: answer on the processor with linear layers in 8-bit integers, the adapter in them:
            faster, and probabilities move a little.

    Raises:
        ValueError: an argument has a wrong type, the folder is incomplete or damaged, or the base
            is not the one it was trained on; of several folders, two cannot share a base, or have
            the same name; several folders, or a device, are given with shard, device_map or int8.
    """
    check_argument_types({"directory": directory, "base": base, "int8": int8}, load_predictor)
    load: functools.partial[Any] = functools.partial(
        load_predictor,
        _absolute(directory),
        base=None if base is None else lasting_name(base),
        quantize=quantize,
        device=device,
        tasks=tasks,
        fast_paths=fast_paths,
        shard=shard,
        device_map=device_map,
        int8=int8,
    )
    _check_together(
        directory, device, quantize=quantize, shard=shard, device_map=device_map, int8=int8
    )
    if not isinstance(directory, str | Path):
        return load_many(
            directory,
            base=base,
            quantize=quantize,
            device=device,
            tasks=tasks,
            fast_paths=fast_paths,
            load=load,
        )
    model, task, tokenizer = load_adapter(
        directory,
        base=base,
        quantize="none" if int8 else quantize,
        tasks=tasks,
        shard=shard,
        device_map=device_map,
    )
    model.requires_grad_(False)
    move_to_device(model, "cpu" if int8 else device)
    if int8:
        model = in_int8(model, task, tokenizer)
    if fast_paths is not None:
        use_fast_paths(model, fast_paths)
    # The thread that loads is often not the one that asks.
    end_team()
    return Predictor(model.eval(), task, tokenizer, load=load)


def _check_together(
    directory: str | Path | Sequence[str | Path],
    device: str | torch.device | None,
    *,
    quantize: Quantize | None,
    shard: bool | None,
    device_map: DeviceMap | None,
    int8: bool,
) -> None:
    """Raise ValueError for arguments of `load_predictor` that cannot be used together."""
    has_several = not isinstance(directory, str | Path)
    if int8 and has_several:
        raise ValueError("int8=True takes one folder: its adapter is put into the weights.")
    if int8:
        others = {"quantize": quantize, "shard": shard, "device_map": device_map}
        _check_beside_int8(device, others)
    if device_map is not None and (device is not None or has_several):
        raise ValueError(
            f"device_map={device_map!r} takes one folder, and no device: it uses all GPUs."
        )
    if shard and (device is not None or has_several):
        raise ValueError(
            "shard=True takes one folder, and no device: each process holds a share of the base on "
            "its own."
        )


def _check_beside_int8(device: str | torch.device | None, others: Mapping[str, Any]) -> None:
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"int8=True, device={str(device)!r}: 8-bit integers are for processors.")
    given = [f"{name}={value!r}" for name, value in others.items() if value]
    if given:
        raise ValueError(
            f"int8=True cannot be used with {', '.join(given)}; leave one of them out."
        )


def load_many(
    directories: Sequence[str | Path],
    *,
    base: str | Path | None,
    quantize: Quantize | None,
    device: str | torch.device | None,
    tasks: Sequence[type[Task]],
    fast_paths: FastPaths | None,
    load: functools.partial[Any] | None = None,
) -> ManyPredictor:
    """Load several adapter folders on one base; arguments and errors as of `load_predictor`.

    `load` loads the same predictor again.
    """
    loaded = load_on_one_base(directories, base=base, quantize=quantize, device=device, tasks=tasks)
    if fast_paths is not None:
        use_fast_paths(loaded.model, fast_paths)
    return ManyPredictor(loaded.model, loaded.routes, loaded.tasks, loaded.tokenizers, load=load)


def _absolute(directory: str | Path | Sequence[str | Path]) -> Any:
    """The same folder or folders, as they are found from every other folder."""
    if isinstance(directory, str | Path):
        return Path(directory).absolute()
    return [Path(each).absolute() for each in directory]
