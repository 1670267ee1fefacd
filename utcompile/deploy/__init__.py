"""From a PyTorch module to a proven ONNX file: export, parity, sessions, accuracy and latency in ONNX Runtime."""

from utcompile.deploy.accuracy import accuracy_onnx
from utcompile.deploy.adding import add_task
from utcompile.deploy.axes import Axis
from utcompile.deploy.export import export_onnx
from utcompile.deploy.onnx_model import OnnxModel
from utcompile.deploy.parity import OutputParity, ParityReport, compare, verify_onnx
from utcompile.deploy.runtime import onnxruntime_conflict, providers_named, session
from utcompile.deploy.tasks import verify_tasks
from utcompile.deploy.timing import Latency, latency
from utcompile.deploy.written import ExportResult

__all__ = [
    "Axis",
    "ExportResult",
    "Latency",
    "OnnxModel",
    "OutputParity",
    "ParityReport",
    "accuracy_onnx",
    "add_task",
    "compare",
    "export_onnx",
    "latency",
    "onnxruntime_conflict",
    "providers_named",
    "session",
    "verify_onnx",
    "verify_tasks",
]
