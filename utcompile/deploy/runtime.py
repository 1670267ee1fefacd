"""ONNX Runtime sessions: quiet, with clear errors, and a warning where two builds overwrite one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from threading import Event, Timer

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from utcompile.deploy.structure import leaves
from utcompile.errors import UtcError, did_you_mean

SECONDS = 600.0  # of one run; a file may have been made to run for ever
# All of these install a package named `onnxruntime`; the last one installed wins, file by file.
BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)


DTYPES = {
    f"tensor({name})": dtype
    for name, dtype in {
        "float": torch.float32,
        "double": torch.float64,
        "float16": torch.float16,
        "complex64": torch.complex64,
        "complex128": torch.complex128,
        "int64": torch.int64,
        "int32": torch.int32,
        "int16": torch.int16,
        "int8": torch.int8,
        "uint64": torch.uint64,
        "uint32": torch.uint32,
        "uint16": torch.uint16,
        "uint8": torch.uint8,
        "bool": torch.bool,
    }.items()
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def providers_named(text: str) -> tuple[str, ...]:
    """`cpu,cuda` as ONNX Runtime names them.

    Raises:
        UtcError: a name that is none, or a provider that this build lacks.
    """
    found = []
    for word in text.split(","):
        name = PROVIDERS.get(word.strip().lower())
        if name is None:
            raise UtcError(f"there is no provider {word!r}", fix=did_you_mean(word, PROVIDERS), code="onnx/runtime")
        check_provider(name)
        found.append(name)
    return tuple(found)


def check_provider(provider: str) -> None:
    """Raise where this build of ONNX Runtime lacks a provider."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UtcError(
            f"ONNX Runtime has no {provider!r}",
            why=f"this build offers {', '.join(available)}",
            fix=onnxruntime_conflict() or did_you_mean(provider, available),
            code="onnx/runtime",
        )


def session(
    path: str | Path,
    threads: int | None = None,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    spin: bool = True,
) -> ort.InferenceSession:
    """Open an ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: threads within an operation. None: one a physical core.
        providers: execution providers in order of preference, e.g. `("CUDAExecutionProvider", "CPUExecutionProvider")`.
        spin: whether idle worker threads spin. With several sessions in one process they steal one another's cores.

    Raises:
        UtcError: there is no such file, it is not ONNX, or the provider is not in this build.
    """
    path = Path(path)
    if not path.is_file():
        raise UtcError("there is no such ONNX file", where=str(path), code="onnx/file")
    for provider in providers:
        check_provider(provider)
    options = session_options(threads, spin)
    try:
        opened = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # its classes are private to the extension module
        raise UtcError(
            "ONNX Runtime cannot open the file",
            where=str(path),
            why=_first_line(error),
            fix="check that it is a whole ONNX file and that no operation in it needs another provider or data type",
            code="onnx/file",
        ) from error
    if providers and providers[0] not in opened.get_providers():  # it falls back to the CPU in silence
        raise UtcError(
            f"ONNX Runtime cannot use {providers[0]!r} on this machine",
            why="the provider's libraries or the device are missing",
            fix="use --providers cpu, or install what onnxruntime-gpu needs",
            code="onnx/runtime",
        )
    return opened


def session_options(threads: int | None, spin: bool) -> ort.SessionOptions:
    """Options of a session that logs errors alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        if threads < 1:
            raise UtcError(
                f"threads is {threads}", fix="pass 1 or more, or None for one per core", code="arguments/value"
            )
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def run(
    opened: ort.InferenceSession,
    feeds: Mapping[str, Tensor],
    seconds: float = SECONDS,
    *,
    adapter: ort.LoraAdapter | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Run a session once on named tensors.

    Args:
        seconds: after which it is stopped.
        adapter: values for optional inputs.
        values: the same, as arrays that were checked before.

    Raises:
        UtcError: an input is missing, unknown, or of another shape or type than the file declares; or the file did not
            come to an end.
    """
    check_feeds(opened, feeds)
    names = [output.name for output in opened.get_outputs()]
    options, stopped = ort.RunOptions(), Event()
    options.log_severity_level = 4
    if adapter is not None:
        options.add_active_adapter(adapter)

    def stop() -> None:
        stopped.set()
        options.terminate = True

    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        arrays = {name: as_numpy(tensor) for name, tensor in feeds.items()}
        results = opened.run(names, {**arrays, **(values or {})}, options)
    except Exception as error:
        if stopped.is_set():
            raise UtcError(
                f"ONNX Runtime had not finished after {seconds:g} s, and was stopped",
                why="the file has a loop that does not end, or is far larger than its model",
                fix="export the model again; give a longer time where it needs one",
                code="onnx/runtime",
            ) from error
        raise UtcError(
            "ONNX Runtime cannot run the file",
            why=_first_line(error),
            fix="an input size that differs from the one it was exported with must be a named, dynamic axis",
            code="onnx/runtime",
        ) from error
    finally:
        timer.cancel()
    return dict(zip(names, (np.asarray(result) for result in results), strict=True))


def check_feeds(opened: ort.InferenceSession, feeds: Mapping[str, Tensor]) -> None:
    """Raise a `UtcError` where names or fixed sizes of `feeds` differ from the file's inputs."""
    declared = {entry.name: entry.shape for entry in opened.get_inputs()}
    others = [name for name in feeds if name not in declared]
    optional = {entry.name for entry in opened.get_overridable_initializers()} if others else set()
    for name in others:
        if name not in optional:
            raise UtcError(f"the ONNX file has no input {name!r}", fix=did_you_mean(name, declared), code="onnx/inputs")
    if missing := [name for name in declared if name not in feeds]:
        raise UtcError(
            f"the ONNX file needs inputs that are not given: {', '.join(map(repr, missing))}",
            why=f"given: {', '.join(map(repr, feeds)) or 'none'}",
            code="onnx/inputs",
        )
    kinds = {entry.name: entry.type for entry in opened.get_inputs()}
    for name, shape in declared.items():
        check_kind(name, feeds[name], kinds[name])
        given = tuple(feeds[name].shape)
        fits = len(given) == len(shape) and all(
            not isinstance(size, int) or size == have for size, have in zip(shape, given, strict=True)
        )
        if not fits:
            wanted = ", ".join(str(size) for size in shape)
            raise UtcError(
                f"the ONNX file's input {name!r} is of shape ({wanted}), not {given}",
                fix="give the size it was exported with, or export it again at this size",
                code="onnx/inputs",
            )


def check_kind(name: str, tensor: Tensor, declared: str) -> None:
    """Raise where an input is of another dtype than the file declares, or no plain tensor.

    Args:
        declared: as ONNX Runtime says it: `tensor(float)`.
    """
    wanted = DTYPES.get(declared)
    if tensor.layout is not torch.strided:
        raise UtcError(f"input {name!r} is a sparse tensor", fix="give tensor.to_dense()", code="onnx/inputs")
    if wanted is None:
        raise UtcError(
            f"input {name!r} of the ONNX file is a {declared}",
            why="utcompile gives a file tensors of numbers",
            fix="run it with onnxruntime.InferenceSession",
            code="onnx/inputs",
        )
    if tensor.dtype is not wanted:
        own, its = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
        raise UtcError(
            f"input {name!r} is {own}, and the file takes {its}",
            fix=f"convert it: tensor.to(torch.{its}), or array.astype({its!r})",
            code="onnx/inputs",
        )


def feeds_in_order(
    opened: ort.InferenceSession, inputs: Tensor | Sequence[object] | Mapping[str, object]
) -> dict[str, Tensor]:
    """Example inputs as feeds: a mapping by name; a tensor or a tuple in the order of the file's inputs."""
    found = [(name, leaf) for name, leaf in leaves(inputs) if isinstance(leaf, Tensor)]
    if isinstance(inputs, Mapping):
        return dict(found)
    names = [entry.name for entry in opened.get_inputs()]
    if len(names) != len(found):
        raise UtcError(
            f"{len(found)} tensors for an ONNX file with {len(names)} inputs",
            why=f"it has {', '.join(names)}",
            code="onnx/inputs",
        )
    return dict(zip(names, (leaf for _, leaf in found), strict=True))


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any device as a contiguous array."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format).numpy()


def onnxruntime_conflict() -> str | None:
    """A warning where more than one build of ONNX Runtime is installed, else None.

    Each of them installs the same files, so the last one wins in silence: providers disappear, versions mix.
    """
    found = []
    for name in BUILDS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return None
    names = [entry.split()[0] for entry in found]
    return (
        f"{' and '.join(found)} are both installed and overwrite one another's files. "
        f"Uninstall all of them (pip uninstall {' '.join(names)}), then install the one you need."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
