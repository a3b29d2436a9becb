"""What the launcher asks for, by its options or its file of settings: done here, or refused."""

import os

INSTEAD = {
    "FSDP_OFFLOAD_PARAMS": "use more processes, or quantize='4bit' without FSDP",
    "FSDP_ACTIVATION_CHECKPOINTING": "set gradient_checkpointing=True instead",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set gradient_checkpointing=True instead",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "leave its sizes out; FSDP 2 alone lays out the base",
}
"""Settings that are refused, and what to do instead."""
WRAP_POLICIES = ("", "None", "TRANSFORMER_BASED_WRAP")
"""Each layer of the base is gathered by itself, whatever classes are listed."""


def check_launcher() -> None:
    """Check what the launcher asks of a training, before a base is loaded.

    Raises:
        ValueError: it asks for DeepSpeed, Megatron-LM or a loss scale.
    """
    for kind in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{kind}"):
            refuse_kind(kind)
    refuse_loss_scale(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def refuse_kind(kind: str) -> None:
    """Raise ValueError for processes that work together in a way that is not done here."""
    raise ValueError(
        f"the launcher asks for {kind}, expected plain processes or FSDP 2. A base that does not "
        "fit on one GPU is held in shares with shard=True (--shard)."
    )


def refuse_loss_scale(precision: str) -> None:
    """Raise ValueError for a mixed precision that needs a loss scale."""
    if precision == "fp16":
        raise ValueError(
            "mixed precision fp16 needs a loss scale, which this trainer does not keep; launch "
            "with bf16 or no."
        )


def launcher_asks_for_shares() -> bool:
    """Whether the launcher was told to use FSDP 2.

    What it says of the layout is taken as it is done here, or refused.

    Raises:
        ValueError: it asks for FSDP 1, or for what is not done here.
    """
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"the launcher asks for FSDP {version}, expected 2: accelerate launch --use_fsdp "
            "--fsdp_version 2."
        )
    for name, instead in INSTEAD.items():
        if _is_set(name):
            raise ValueError(
                f"the launcher sets {name.lower()}, which is not done here; {instead}."
            )
    if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "no_shard"):
        raise ValueError(
            "the launcher sets fsdp_reshard_after_forward to false, with which each process would "
            "hold the whole base; leave it out."
        )
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "")
    if policy not in WRAP_POLICIES:
        raise ValueError(
            f"the launcher sets fsdp_auto_wrap_policy to {policy}; each layer of the base is "
            "gathered by itself here, so leave it out."
        )
    if os.environ.get("FSDP_IGNORED_MODULES"):
        raise ValueError(
            "the launcher sets fsdp_ignored_modules; what is trained stays whole in every process "
            "by itself, and the rest is in shares, so leave it out."
        )
    return True


def _is_set(name: str) -> bool:
    """Whether a switch of the launcher is on."""
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
