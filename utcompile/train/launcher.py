"""The settings of `accelerate launch`: what the trainer decides itself must not differ from them."""

from __future__ import annotations

import os

from utcompile.errors import UtcError

_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def check_launcher(precision: str) -> None:
    """Refuse settings of a launcher that the trainer would not follow, or would follow silently.

    Args:
        precision: of the run.

    Raises:
        UtcError: the launcher was given a way of sharding, another precision, or batches per step.
    """
    for variable, engine in _SHARDING.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise _differs(
                f"the engine {engine}",
                "the trainer replicates the model: every process has all of it",
                "launch with --multi_gpu, or torchrun; or shard the model in your own loop",
            )
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if given not in ("no", precision):
        raise _differs(
            f"the mixed precision {given}",
            f"the run has the precision {precision!r}, and its manifest says so",
            f"give it to the run: precision={given!r} (--precision {given})" if given != "fp8" else "leave it out",
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise _differs(
            f"{steps} gradient accumulation steps",
            "the trainer weights the batches of a step itself",
            f"give it to the run: accumulate={steps} (--accumulate {steps})",
        )


def _differs(what: str, why: str, fix: str) -> UtcError:
    return UtcError(
        f"the launcher was given {what}", where="accelerate launch", why=why, fix=fix, code="train/settings"
    )
