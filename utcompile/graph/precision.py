"""float32 that is float32: TF32 and bfloat16 products are off while something is compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products, convolutions and recurrent layers in IEEE float32, on GPUs and CPUs; the settings are restored.

    cuDNN stays on, so that what is compared runs on the kernels that the user's calls run on.

    Example:
        >>> before = torch.backends.cudnn.conv.fp32_precision
        >>> with full_precision():
        ...     torch.backends.cudnn.conv.fp32_precision
        'ieee'
        >>> torch.backends.cudnn.conv.fp32_precision == before
        True
    """
    backends = torch.backends
    settings = [
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),  # type: ignore[attr-defined]
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),  # type: ignore[attr-defined]
    ]
    before = [setting.fp32_precision for setting in settings]
    older = _older()
    try:
        with _unlocked():
            # the older switches too: torch refuses to read them where they say something else
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
            for setting in settings:
                setting.fp32_precision = "ieee"
        yield
    finally:
        with _unlocked():
            if older is not None:
                torch.set_float32_matmul_precision(older[0])
                backends.cudnn.allow_tf32 = older[1]
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value


def _unlocked() -> AbstractContextManager[object]:
    """Where the switches may be set: `torch.backends.disable_global_flags` locks them, as torch's own tests do."""
    unlock = getattr(torch.backends, "__allow_nonbracketed_mutation", nullcontext)
    return unlock()


def _older() -> tuple[str, bool] | None:
    """The older switches; None where the two kinds of switches contradict each other, and torch does not read them."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None
