"""Hugging Face's `Trainer` with checkpoints that have the tuners alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.rewrite import load_tuners, save_tuners

if TYPE_CHECKING:
    from transformers import Trainer


def trainer_of_tuners(trainer_class: type[Trainer] | None = None) -> type[Trainer]:
    """A `Trainer` whose checkpoints are those of `utc.save_tuners`: the tuners and what `train:` names.

    Everything else in a checkpoint's folder is the Trainer's own: optimizer, schedule, random numbers, its state. It
    resumes, and loads the best checkpoint at the end, as its base does.

    Args:
        trainer_class: the base; `transformers.Trainer` by default.

    Raises:
        UtcError: transformers is not installed.
    """
    if trainer_class is None:
        try:
            from transformers import Trainer as trainer_class
        except ImportError as error:
            raise UtcError(
                "the Trainer needs the package transformers",
                why=str(error),
                fix="pip install 'utcompile[hf]'",
                code="train/needs",
            ) from error
    assert trainer_class is not None
    base: Any = trainer_class

    class TrainerOfTuners(base):  # type: ignore[misc]
        """Saves and loads tuners."""

        def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            is_sharded = any(hasattr(p, "full_tensor") for p in self.model.parameters())
            if self.args.should_save or is_sharded:  # every process has a share of what is sharded
                save_tuners(self.model, folder)
            if not self.args.should_save:
                return
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            torch.save(self.args, folder / "training_args.bin")

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
            load_tuners(self.model if model is None else model, resume_from_checkpoint)

        def _load_best_model(self) -> None:
            load_tuners(self.model, self.state.best_model_checkpoint)

    TrainerOfTuners.__name__ = f"{base.__name__}OfTuners"
    found: type[Trainer] = TrainerOfTuners
    return found
