"""Run a model on fake tensors and record a torch.fx graph."""

from utcompile.recording.capture_model import capture
from utcompile.recording.captured import CapturedModule, CaptureReport

__all__ = ["CaptureReport", "CapturedModule", "capture"]
