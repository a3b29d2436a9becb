"""The PEFT settings that an adapter folder may have; others could import modules or never end."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PEFT_TYPES = ("LORA", "ADALORA", "IA3")
"""The kinds of adapter that `attach_lora` makes."""
PEFT_HEADS = frozenset(("classifier", "score", "qa_outputs"))
"""Head names that PEFT adds to those it is given."""
TEXT_SETTINGS = frozenset(
    ("base_model_name_or_path", "revision", "task_type", "peft_type", "peft_version")
)
"""PEFT's settings that may be any text, since nothing is done with them."""
NUMBER_SETTINGS = frozenset(
    (
        "r",
        "target_r",
        "init_r",
        "lora_alpha",
        "lora_dropout",
        "total_step",
        "tinit",
        "tfinal",
        "deltaT",
    )
)
RANK_SETTINGS = ("r", "target_r", "init_r")
PATTERN_SETTINGS = ("rank_pattern", "alpha_pattern")
"""Numbers by module name. PEFT reads a name as a pattern, so only plain names are allowed."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
SWITCH_SETTINGS = frozenset(("fan_in_fan_out", "inference_mode", "use_dora", "use_rslora"))
EMPTY_SETTINGS = frozenset(("feedforward_modules", "target_parameters"))
"""PEFT's settings that may be an empty list, where the default is None."""
SHOWN_CHARACTERS = 200
"""Of a value in a message."""


def check_peft_settings(
    file: Path, settings: Mapping[str, Any], heads: Iterable[str], widest: int
) -> None:
    """Raise ValueError for a PEFT setting with a value that `attach_lora` does not make.

    Settings that `attach_lora` does not use are left to `check_unused_settings`.

    Args:
        file: the settings' file, for messages.
        settings: as they were read.
        heads: names of the base model's heads.
        widest: the largest side of the adapter's tensors; no rank can be larger.
    """
    peft_type = settings.get("peft_type")
    if peft_type not in PEFT_TYPES:
        raise ValueError(
            f"{file} has the peft_type {peft_type!r}, expected one of {list(PEFT_TYPES)}."
        )
    for name, value in settings.items():
        if _is_own_setting(name, value, heads) is False:
            raise _not_own(file, name, value)
    ranks = {name: settings[name] for name in RANK_SETTINGS if name in settings}
    ranks |= settings.get("rank_pattern") or {}
    for name, rank in ranks.items():
        if type(rank) is not int or not 1 <= rank <= widest:
            raise ValueError(
                f"{file} has {name}={rank}, expected a rank of at least 1 and at most "
                f"{widest}, the widest of its tensors."
            )


def check_unused_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting that `attach_lora` does not use is not PEFT's default.

    Args:
        file: the settings' file, for messages.
        settings: as they were read; they have passed `check_peft_settings`.
    """
    from peftcls.models.peft_library import PEFT_TYPE_TO_CONFIG_MAPPING

    defaults = _default_settings(PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]])
    for name, value in settings.items():
        if _is_own_setting(name, value, ()) is None and not _is_default(name, value, defaults):
            raise _not_own(file, name, value)


def _not_own(file: Path, name: str, value: Any) -> ValueError:
    # A name can hold line breaks.
    setting = f"{' '.join(name.split())}={json.dumps(value)[:SHOWN_CHARACTERS]}"
    return ValueError(
        f"{file} has {setting}, which is no setting of an adapter that peftcls trains."
    )


def _default_settings(config_class: Any) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(config_class):
        if field.default_factory is dataclasses.MISSING:
            defaults[field.name] = field.default
        else:
            defaults[field.name] = field.default_factory()
    return defaults


def _is_own_setting(name: str, value: Any, heads: Iterable[str]) -> bool | None:
    """Whether a PEFT setting has a value that `attach_lora` can give it; None if it gives none."""
    if name in TEXT_SETTINGS:
        return isinstance(value, str | None)
    if name in SWITCH_SETTINGS:
        return isinstance(value, bool)
    if name in NUMBER_SETTINGS:
        return _is_count_or_share(value)
    if name in PATTERN_SETTINGS:
        return _is_number_by_name(value)
    match name:
        case "target_modules":
            # As a text it would be a pattern, and matching a pattern can take forever.
            return is_list_of_texts(value)
        case "modules_to_save":
            allowed = PEFT_HEADS.union(heads)
            return value is None or (isinstance(value, list) and set(map(str, value)) <= allowed)
        case "init_lora_weights":
            return value in (True, "pissa")
    return None


def _is_default(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    # A setting of another version of PEFT must be switched off.
    if name not in defaults:
        return not value
    return value == defaults[name] or (name in EMPTY_SETTINGS and value == [])


def _is_number_by_name(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    return all(
        PLAIN_NAME.fullmatch(name) is not None and type(number) is int and number >= 1
        for name, number in value.items()
    )


def _is_count_or_share(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0


def is_list_of_texts(value: Any) -> bool:
    """Whether a value from a JSON file is a list that holds texts only."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
