"""`task.json` in a run's folder: how an input is made of a file, and what an output means.

It is written when the run starts, and is all that a program needs that feeds the exported model. Its keys:

    format          1
    task            classify, multilabel, regress, segment, text or custom
    labels          names of the outputs in order: classes, labels, or (regress) targets; may be empty for custom
    outputs         {"kind": "logits"}: softmax (classify, text, segment; over axis 1) or sigmoid (multilabel) of them;
                    {"kind": "standardised", "mean": […], "std": […]}: number = output * std + mean (regress);
                    {"kind": "custom"}
    metrics         what was measured, the one that chose the best epoch first; `higher_is_better` is of that one
    ignored         the label of pixels that do not count (segment), else null
    preprocessing   by `kind`:

`{"kind": "image", "size": [C, H, W], "mean": […], "std": […], "interpolation": "bicubic", "crop_pct": 0.875,
"resize": "crop"}` - an image is read as RGB (or grey, where C is 1). With `resize: crop`, its short side is resized to
`floor(H / crop_pct)` (of a square size; for another, each side to `floor(side / crop_pct)` where the larger share
decides, as `timm.data.create_transform` does), and the centre of H × W is cut out. With `resize: squash` both sides are
resized, without regard to their ratio. Then `(value / 255 - mean) / std` per channel, as float32 `(1, C, H, W)`.

`{"kind": "text", "tokenizer": "tokenizer", "max_length": 128, "inputs": ["input_ids", …], "pair": false}` -
`tokenizer` is a folder next to this file, for `AutoTokenizer.from_pretrained`; texts are cut at `max_length` tokens and
padded to the longest of a batch; the model takes the arrays that `inputs` names. `pair`: it takes two texts.

`{"kind": "array"}` - the data were arrays, which are given to the model as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.files import replace_file, reported
from utcompile.train.dataset import Data
from utcompile.train.tasks import IGNORED, Regress, Task

TASK_FILE = "task.json"
TOKENIZER = "tokenizer"  # the folder of the tokenizer in a run's folder
_FORMAT = 1


@dataclass(frozen=True)
class TaskFile:
    """What `task.json` says; see the module."""

    task: str
    labels: list[str]
    outputs: dict[str, object]
    metrics: list[str]
    higher_is_better: bool
    preprocessing: dict[str, object]
    ignored: int | None = None
    format: int = field(default=_FORMAT, kw_only=True)

    @classmethod
    def of(cls, data: Data, task: Task) -> TaskFile:
        """The description of a run that is about to start."""
        outputs: dict[str, object] = {"kind": "custom" if task.name == "custom" else "logits"}
        if isinstance(task, Regress):
            outputs = {"kind": "standardised", "mean": task.mean.tolist(), "std": task.std.tolist()}
        return cls(
            task.name,
            list(data.class_names),
            outputs,
            list(task.metrics),
            task.higher,
            dict(data.preprocessing) or {"kind": "array"},
            IGNORED if task.name == "segment" else None,
        )

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        path = folder / TASK_FILE
        with reported("the description of the task cannot be written", path):
            replace_file(path, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_task_file(run: str | Path) -> TaskFile:
    """The description of a run, which anybody may have written.

    Raises:
        UtcError: there is none, or it is damaged or of a later version.
    """
    path = Path(run) / TASK_FILE
    if not path.is_file():
        raise UtcError(
            "the run does not say what it was trained for",
            where=str(path),
            why="there is no such file; only `utcompile train` of this version writes it",
            fix="train it again, or name the task with --task",
            code="checkpoint/not-found",
        )
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from error
    if not isinstance(found, Mapping) or not all(isinstance(found.get(k), kind) for k, kind in _KINDS.items()):
        raise _damaged(path, f"it must have {', '.join(_KINDS)}")
    if found["format"] != _FORMAT:
        raise UtcError(
            f"the description has format {found['format']}, this version reads {_FORMAT}",
            where=str(path),
            fix="upgrade utcompile",
            code="checkpoint/format",
        )
    if not all(isinstance(name, str) for name in (*found["labels"], *found["metrics"])) or not found["metrics"]:
        raise _damaged(path, "labels and metrics must be lists of texts")
    return TaskFile(**{k: found[k] for k in (*_KINDS, "ignored") if k in found})


_KINDS: dict[str, type] = {
    "task": str,
    "labels": list,
    "outputs": dict,
    "metrics": list,
    "higher_is_better": bool,
    "preprocessing": dict,
    "format": int,
}


def _damaged(path: Path, why: str) -> UtcError:
    return UtcError("this is no description of a task", where=str(path), why=why, code="checkpoint/damaged")
