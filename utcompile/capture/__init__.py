"""Run a model on fake tensors and record a torch.fx graph."""

from utcompile.capture.capture import capture
from utcompile.capture.captured import CapturedModule, CaptureReport

__all__ = ["CaptureReport", "CapturedModule", "capture"]
