"""The demo's figures as one table."""

from __future__ import annotations

from rich.table import Table

from utcompile.plain_data import JsonObject

_TITLES = {"base": "linear probe", "tuned": "tuned", "folded": "tuned, folded"}


def table(report: JsonObject) -> Table:
    """One column a model, one row a figure."""
    models = report["models"]
    result = Table(title="Frozen EfficientNet-Lite0 on handwritten digits", caption=_caption(report), caption_style="")
    result.add_column("")
    for name in models:
        result.add_column(_TITLES[name], justify="right", style="bold green" if name == "folded" else "")

    def row(title: str, key: str, text: str) -> None:
        values = [entry[key] for entry in models.values()]
        result.add_row(title, *("none" if value is None else text.format(value) for value in values))

    row("trainable parameters", "trainable_parameters", "{:,}")
    row("test accuracy, PyTorch", "accuracy_torch", "{:.1%}")
    row("test accuracy, ONNX Runtime", "accuracy_onnx", "{:.1%}")
    sizes = (entry["checkpoint_bytes"] for entry in models.values())
    result.add_row("checkpoint", *("in the weights" if size is None else f"{size / 1e6:.2f} MB" for size in sizes))
    result.add_row("ONNX file", *(f"{entry['onnx_bytes'] / 1e6:.1f} MB" for entry in models.values()))
    result.add_row(
        "latency, ONNX Runtime, batch 1",
        *(f"{entry['latency_ms']:.2f} ms ({entry['latency_ratio']:.2f}x)" for entry in models.values()),
    )
    row("largest difference, ONNX Runtime and PyTorch", "onnx_difference", "{:.1e}")
    return result


def _caption(report: JsonObject) -> str:
    digits, fold = report["digits"], report["fold"]
    done = ", ".join(f"{count} {status}" for status, count in fold.items())
    return (
        f"{digits['train']:,} digits to train on, {digits['validation']} to choose the epoch by, {digits['test']:,} to "
        f"test; all heads start at random.\nTuners: {done}; folded and unfolded differ by "
        f"{report['fold_difference']:.1e} of the largest output.\n{report['seconds']:.0f} s, seed {report['seed']}"
    )
