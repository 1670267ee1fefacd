"""PEFT's layout of a LoRA checkpoint: which layers it tunes as we do, and what its tensors are in ours.

PEFT tunes calls of modules, with factors in another orientation (`r` the rank, `k` the kernel):

| layer | PEFT's A, B | ours |
|---|---|---|
| `nn.Linear` `(out, in)` | `(r, in)`, `(out, r)` | the same |
| `nn.Conv1d`, `2d`, `3d` `(out, in, *k)` | `(r, in, *k)`, `(out, r, 1, …)` | B is `(out, r)` |
| `nn.Embedding` `(rows, dim)` | `lora_embedding_A` `(r, rows)`, `_B` `(dim, r)` | transposed, the other way round |
| transformers' `Conv1D` `(in, out)` | `(r, in)`, `(out, r)` | transposed, the other way round |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import origin_of
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite, TunedWeight
from utcompile.tuners import Dora, Lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE = "utcompile_base"  # of the tensors' file: the fingerprint of the base that they were trained on
Problems = list[tuple[str, str]]  # what, and why not
Layer = Literal["linear", "conv", "embedding", "conv1d of transformers"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def by_reason(problems: Problems, most: int | None = None) -> str | None:
    """One line a reason, with what it holds for.

    >>> by_reason([("a", "no"), ("b", "no"), ("c", "no"), ("d", "never")], most=2)
    'a, b and 1 more: no\\n    d: never'
    """
    groups: dict[str, list[str]] = {}
    for name, reason in problems:
        groups.setdefault(reason, []).append(name)
    lines = []
    for reason, names in groups.items():
        more = f" and {len(names) - most} more" if most is not None and len(names) > most else ""
        lines.append(f"{', '.join(names[:most])}{more}: {reason}")
    return "\n    ".join(lines) or None


def module_of(site: TunedSite) -> str:
    """The path of the module whose weight a site tunes.

    Raises:
        UtcError: the tuner is no plain LoRA or DoRA of a module's own weight.
    """
    if site.tuner not in (Lora.kind, Dora.kind) or not isinstance(site.place, TunedWeight):
        raise UtcError(f"its tuner is {site.form} {site.tuner}, and only lora and dora have PEFT's layout")
    if getattr(site.config, "slices", None):
        raise UtcError("it tunes slices of a packed weight, and PEFT the whole")
    names = site.place.names
    path, _, attribute = names[0].rpartition(".")
    if len(names) > 1 or attribute != "weight" or not path:
        raise UtcError(f"it tunes {', '.join(names)}, and PEFT the weights of modules")
    return path


def layer_of(tuned: TunedModule, path: str) -> Layer:
    """How PEFT's LoRA sees a module.

    Raises:
        UtcError: it would leave it as it is, refuse it, or compute something else than a low-rank change of its weight.
    """
    layer = called_layer(tuned, path)
    if layer != "conv":
        return layer
    module = tuned.get_submodule(path)
    assert isinstance(module, _CONVS)
    if module.groups != 1:
        raise UtcError(f"its groups={module.groups}, and PEFT's A reads all channels in each group")
    if any(d != 1 and k != 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)):
        raise UtcError(f"its dilation={module.dilation}, which PEFT's A does not have")
    if module.padding_mode != "zeros" and module.padding not in ((0,) * len(module.kernel_size), "valid"):
        raise UtcError(f"its padding_mode={module.padding_mode!r}, and PEFT's A pads with zeros")
    return layer


def called_layer(tuned: TunedModule, path: str) -> Layer:
    """The layer whose calls PEFT changes.

    Raises:
        UtcError: its weight is read otherwise, or it is no layer that PEFT tunes.
    """
    calls = [n for n in tuned.base_graph.nodes if n.op == "call_module" and str(n.target) == path]
    reads = [n for n in tuned.base_graph.nodes if n.op == "get_attr" and str(n.target) == f"{path}.weight"]
    readers = [user for read in reads for user in read.users]
    if path in tuned.aliased:
        raise UtcError("it has two names in the model, and PEFT tunes the first alone")
    classes = {_class_at(reader, path) for reader in readers}
    if readers and not calls and classes == {"Conv1D"} and {reader.target for reader in readers} == {torch.addmm}:
        return "conv1d of transformers"
    if readers and not calls and None not in classes:
        raise UtcError(f"{', '.join(map(str, classes))} computes with its weight in its own code")
    if readers:
        raise UtcError("its weight is read without a call of the module, where PEFT's tuner has no effect")
    module = tuned.get_submodule(path)
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "linear"
    if not isinstance(module, _CONVS):
        raise UtcError(f"PEFT does not tune {type(module).__name__}")
    return "conv"


def check_reads_inside(tuned: TunedModule, parameter: str, path: str) -> None:
    """Check that a parameter is read in calls of a module alone: there PEFT changes it.

    Raises:
        UtcError: something else reads it too.
    """
    if path in tuned.aliased:
        raise UtcError("its module has two names in the model, and PEFT tunes the first alone")
    for read in tuned.base_graph.nodes:
        if read.op == "get_attr" and str(read.target) == parameter:
            outside = [n for n in read.users if all(frame.path != path for frame in origin_of(n).scope)]
            if outside:
                raise UtcError(f"it is read outside of calls of {path}, where PEFT's tuner has no effect")


def _class_at(node: fx.Node, path: str) -> str | None:
    """The class of a module, where a node runs in its own code."""
    frame = origin_of(node).scope[-1:]
    return frame[0].cls if frame and frame[0].path == path else None


def to_peft(layer: Layer, tuner: Lora) -> dict[str, torch.Tensor]:
    """A tuner's tensors under PEFT's names."""
    a, b = tuner.lora_A.detach(), tuner.lora_B.detach()
    if layer == "embedding":
        found = {"lora_embedding_A": b.t(), "lora_embedding_B": a.t()}
    elif layer == "conv1d of transformers":
        found = {"lora_A.weight": b.t(), "lora_B.weight": a.t()}
    else:
        found = {"lora_A.weight": a, "lora_B.weight": b.reshape(*b.shape, *[1] * (a.dim() - 2))}
    if isinstance(tuner, Dora):
        spatial = a.dim() - 2 if layer == "conv" else 0
        m = tuner.magnitude.detach()
        found["lora_magnitude_vector"] = m.reshape(1, -1, *[1] * spatial) if layer == "conv" else m
    return found


def from_peft(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse: PEFT's tensors of a module under our names."""
    if layer == "embedding":
        found = {"lora_A": tensors["lora_embedding_B"].t(), "lora_B": tensors["lora_embedding_A"].t()}
    elif layer == "conv1d of transformers":
        found = {"lora_A": tensors["lora_B.weight"].t(), "lora_B": tensors["lora_A.weight"].t()}
    else:
        found = {"lora_A": tensors["lora_A.weight"], "lora_B": tensors["lora_B.weight"].flatten(1)}
    if "lora_magnitude_vector" in tensors:
        found["magnitude"] = tensors["lora_magnitude_vector"].flatten()
    return found


def from_parameter(shape: tuple[int, ...], r: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PEFT's tensors of a parameter under our names: of a matrix, or of a stack of `E` matrices.

    Of a stack, PEFT's A is `(E·r, in)` and its B `(out, r·E)`; the matrices are `(out, in)`, or where a class sets
    `is_transposed`, `(in, out)`.

    Raises:
        UtcError: they are not those of the parameter, or nothing says which of a stack's axes is which.
    """
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    if len(shape) == 2:
        return {"lora_A": a, "lora_B": b}
    if len(shape) != 3 or a.shape[0] != shape[0] * r or b.shape[1] != shape[0] * r:
        raise UtcError(f"its shape is {list(shape)}, and the checkpoint's tensors are {list(a.shape)}, {list(b.shape)}")
    if shape[1] == shape[2]:
        raise UtcError("its matrices are square, and whether PEFT reads them transposed is not in the checkpoint")
    down = a.reshape(shape[0], r, -1)  # (E, r, in)
    up = b.reshape(b.shape[0], r, shape[0]).permute(2, 0, 1)  # (E, out, r)
    if (b.shape[0], a.shape[1]) == shape[1:]:
        return {"lora_A": down, "lora_B": up}
    return {"lora_A": up.mT, "lora_B": down.mT}
