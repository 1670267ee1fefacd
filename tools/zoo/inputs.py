"""Example inputs for a transformers model: by the names of its `forward`, mended by what its errors say."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tools.zoo.makers import MAKERS, SHAPED, make, shapes_of
from tools.zoo.scene import Scene

_TRIES = 10
_SECONDS = 30.0  # for finding inputs of one model
_COUNTS = re.compile(r"tokens\D{0,20}?(\d+)\D+?features\D{0,4}?(\d+)", re.IGNORECASE | re.DOTALL)
_VIEWS = re.compile(r"split_sizes=\[(\d+)(?:, \1)*\]")
_SECONDARY = ("inputs_embeds", "decoder_inputs_embeds", "encoder_outputs", "past_key_values", "image_embeds", "labels")
# given without need, where `forward` has them
_WELCOME = tuple(
    """input_ids attention_mask pixel_values input_features input_values bbox
    states actions rewards returns_to_go timesteps""".split()
)


def example_inputs(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Inputs that the model runs on, by name, and a note where not every kind of input is among them.

    Different shapes of images and sounds are tried in turn; then the tokens alone. A try that fails is mended as long
    as its error names what is missing.

    Raises:
        RuntimeError: nothing ran; it tells the first try's error.
    """
    scene = Scene(model.config)
    accepted = inspect.signature(model.forward).parameters
    first: Exception | None = None
    until = time.monotonic() + _SECONDS
    for names, shapes in _starts(model, scene, accepted):
        if first is not None and time.monotonic() > until:
            break
        scene.shapes, scene.placeholders, scene.views = shapes, {}, 2
        try:
            found = _mended(model, scene, names, accepted)
        except Exception as error:  # whatever a model's code raises
            first = first or error
            continue
        left_out = [n for n in ("pixel_values", "input_features", "input_values") if n in accepted and n not in found]
        return found, f"without {', '.join(left_out)}" if left_out else ""
    raise RuntimeError(f"no example inputs were found: {type(first).__name__}: {str(first)[:600]}")


def _starts(model: Any, scene: Scene, accepted: Any) -> Iterator[tuple[list[str], dict[str, int]]]:
    """Yield the attempts in turn: names of inputs, and which of its shapes each takes."""
    main = model.main_input_name
    mains = [main] if isinstance(main, str) else list(main)
    required = [
        n for n, p in accepted.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    sequence = {"input_ids", "input_values", "input_features"} & accepted.keys()
    welcome = [n for n in _WELCOME if n in accepted and (sequence or n != "attention_mask")]
    needed = list(dict.fromkeys([*(n for n in mains if n in accepted), *required]))
    everything = list(dict.fromkeys([*needed, *welcome]))
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        needed.append("decoder_input_ids")
        everything.append("decoder_input_ids")
    for names in (everything, needed):
        shaped = next((n for n in names if n in SHAPED), None)
        for shape in shapes_of(scene, shaped) if shaped else [0]:
            yield names, {shaped: shape} if shaped else {}
    if "input_ids" in needed:
        yield ["input_ids", "attention_mask"] if "attention_mask" in accepted else ["input_ids"], {}
        yield ["input_ids"], {}


def _mended(model: nn.Module, scene: Scene, names: list[str], accepted: Any) -> dict[str, Tensor]:
    """Run, and as long as the error tells what is missing, add it and run again."""
    names = list(names)
    for _ in range(_TRIES):
        inputs = _made(scene, names, accepted)
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs
        except Exception as error:
            if not (_placed(scene, str(error)) or _viewed(scene, str(error)) or _added(names, str(error), accepted)):
                raise
    raise RuntimeError("the example inputs could not be mended")


def _made(scene: Scene, names: list[str], accepted: Any) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    for name in names:
        inputs.update({k: v for k, v in make(scene, name).items() if k in accepted and k not in inputs})
    sound = inputs.get("input_values", inputs.get("input_features"))
    if "attention_mask" in inputs and "input_ids" not in inputs and sound is not None:
        mask = torch.ones(scene.batch, max(sound.shape[1:]), dtype=torch.long)
        mask[:, -len(mask[0]) // 4 :] = 0
        inputs["attention_mask"] = mask
    return inputs


def _placed(scene: Scene, message: str) -> bool:
    """Whether the error counts placeholder tokens against features, and a change to the tokens may help."""
    found = _COUNTS.search(message)
    if not found:
        return False
    kind = next((k for k in ("video", "audio") if k in message[: found.start()].lower()), "image")
    features = int(found[2])
    given = scene.placeholders.get(kind, 0)
    wanted = features // scene.batch if features % scene.batch == 0 else features
    hidden = scene.find("hidden_size", "d_model", within="text", default=1)
    if given == wanted and wanted % hidden == 0:
        wanted //= hidden  # some messages count the numbers of the features
    if given == wanted or wanted > 4000 or scene.token_id(kind) is None:
        return False
    scene.placeholders[kind] = wanted
    return True


def _viewed(scene: Scene, message: str) -> bool:
    """Whether the error tells how many views of each image the model expects (LLaVA-NeXT)."""
    found = _VIEWS.search(message)
    if not found or int(found[1]) == scene.views or int(found[1]) > 100:
        return False
    scene.views = int(found[1])
    return True


def _added(names: list[str], message: str, accepted: Any) -> bool:
    """Whether the error names an input that can be made; it is added."""
    named = [n for n in accepted if n not in names and n in MAKERS and re.search(rf"\b{re.escape(n)}\b", message)]
    named.sort(key=lambda n: n in _SECONDARY)
    if not named and "NoneType" in message:
        named = [n for n in accepted if n not in names and n in _LIKELY]
    if named:
        names.append(named[0])
    return bool(named)


_LIKELY: tuple[str, ...] = (
    "decoder_input_ids", "attention_mask", "pixel_mask", "token_type_ids", "pixel_attention_mask", "image_grid_thw",
    "pixel_values", "image_sizes", "input_features_mask", "image_attention_mask",
)  # fmt: skip
