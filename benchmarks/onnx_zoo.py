"""Models by name, tuned, exported to ONNX and compared at three sizes and more: one line of JSON per model.

    python -m benchmarks.onnx_zoo zoo-onnx.jsonl            60 small models of timm and transformers
    python -m benchmarks.onnx_zoo zoo-onnx.jsonl --classes  and one of each other class of timm, up to 12 M parameters

Models that the file has already are left out, so it goes on where it was stopped. A model that fails is also exported
by torch.onnx without tuners: a failure there has another reason than tuning.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import utcompile as utc
from benchmarks.folding import shake
from utcompile.deploy.call import Call, as_shipped
from utcompile.deploy.translate import translate

RULES: tuple[tuple[str, dict[str, int]], ...] = (
    ("u_tuning/dual", {"dim": 4}),
    ("lora/all_conv", {"r": 2}),
    ("lora/all_linear", {"r": 2}),
)
TIMM = """test_byobnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
test_efficientnet_gn test_efficientnet_ln test_mambaout test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4
resnet10t mobilenetv3_small_050 mobilenetv2_035 efficientnet_lite0 ghostnet_050 lcnet_035 tinynet_e regnetx_002
regnety_002 convnext_atto mnasnet_small vit_tiny_patch16_224 deit_tiny_patch16_224 levit_128s resmlp_12_224
poolformer_s12 edgenext_xx_small efficientvit_b0 fastvit_t8 repvgg_a0 dla46_c mobilevit_xxs pit_ti_224 tiny_vit_5m_224
starnet_s1""".split()
_LARGE = re.compile(r"large|huge|giant|base|so400m|_x+l|_[hgl]\d*_|[1-9]\d{2,}m")  # building them takes minutes
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 200,
}
_LANGUAGE = {**_SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {
    "vocab_size": 200,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IMAGES = {**{k: v for k, v in _SMALL.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": _SMALL,
    "RobertaForSequenceClassification": {**_SMALL, "max_position_embeddings": 64},
    "DistilBertForSequenceClassification": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "vocab_size": 200,
    },
    "AlbertForSequenceClassification": {**_SMALL, "embedding_size": 32},
    "ElectraForSequenceClassification": {**_SMALL, "embedding_size": 32},
    "MPNetForSequenceClassification": _SMALL,
    "DebertaV2ForSequenceClassification": _SMALL,
    "XLMRobertaForSequenceClassification": {**_SMALL, "max_position_embeddings": 64},
    "GPT2LMHeadModel": _GPT,
    "OPTForCausalLM": {**_LANGUAGE, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200},
    "LlamaForCausalLM": {**_LANGUAGE, "num_key_value_heads": 1},
    "MistralForCausalLM": {**_LANGUAGE, "num_key_value_heads": 1},
    "Qwen2ForCausalLM": {**_LANGUAGE, "num_key_value_heads": 1},
    "GemmaForCausalLM": {**_LANGUAGE, "num_key_value_heads": 1, "head_dim": 16},
    "PhiForCausalLM": _LANGUAGE,
    "ViTForImageClassification": _IMAGES,
    "DeiTForImageClassification": _IMAGES,
    "BeitForImageClassification": _IMAGES,
    "ConvNextForImageClassification": {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "image_size": 64},
}


def names(classes: bool) -> list[str]:
    """The models, in order."""
    found = [*(f"timm:{name}" for name in TIMM), *(f"transformers:{name}" for name in TRANSFORMERS)]
    return found + [f"timm:{name}" for name in _classes()] if classes else found


def _classes() -> Iterator[str]:
    """One model of each class of timm that is not among `TIMM`, the smallest of those up to 12 M parameters."""
    smallest: dict[str, tuple[int, str]] = {}
    known: set[str] = set()
    for name in timm.list_models():
        if _LARGE.search(name):
            continue
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            try:
                model = timm.create_model(name)
            except Exception:  # a model that timm itself cannot build on the meta device
                continue
        kind, size = type(model).__name__, sum(p.numel() for p in model.parameters())
        if name in TIMM:
            known.add(kind)
        elif size <= 12e6:
            smallest[kind] = min(smallest.get(kind, (size, name)), (size, name))
    return (name for kind, (_, name) in sorted(smallest.items()) if kind not in known)


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor] | tuple[torch.Tensor, ...]]:
    """A model of random weights, and its example."""
    source, _, name = name.partition(":")
    torch.manual_seed(0)
    if source == "timm":
        for options in ({"img_size": 64}, {}):
            try:
                model = timm.create_model(name, num_classes=5, **options)
                break
            except (TypeError, AssertionError, ValueError):
                continue
        fixed = model.default_cfg.get("fixed_input_size") and not options
        size = model.default_cfg["input_size"] if fixed else (3, 64, 64)
        return model.eval(), (torch.randn(2, *size),)
    import transformers

    config = getattr(transformers, name).config_class(**TRANSFORMERS[name], num_labels=3)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = getattr(transformers, name)(config).eval()
    if "Image" in name:
        size = config.image_size
        return model, {"pixel_values": torch.randn(2, 3, size, size)}
    ids = torch.randint(3, 200, (2, 9))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tune(model: nn.Module, example: Any) -> tuple[utc.TunedModule, str]:
    """A model tuned by the first rules that find places in it."""
    for rules, variables in RULES:
        try:
            return utc.compile(model, rules, example, vars=variables, verify="shapes"), rules
        except utc.UtcError as error:
            if error.code not in ("rule/expect", "match/expect", "rule/count") and "expected at least" not in str(
                error
            ):
                raise
    raise utc.UtcError("no rules find a place", code="rule/expect")


def once(name: str) -> dict[str, object]:
    """One line."""
    started = time.perf_counter()
    line: dict[str, object] = {"model": name, "torch": str(torch.__version__)}
    model, example = build(name)
    try:
        tuned, line["rules"] = tune(model, example)
        shake(tuned)
        with tempfile.TemporaryDirectory() as folder:
            result = utc.export_onnx(tuned.eval(), Path(folder) / "m.onnx", example, batch_sizes=(1, 3))
        sizes = {(entry.batch, entry.sizes) for entry in result.parity.outputs}
        axes = [str(axis) for axis in result.axes]
        line |= {
            "passed": True,
            "max_error": result.max_error,
            "sizes": len(sizes),
            "axes": axes,
            "notes": result.notes,
        }
    except Exception as error:
        line |= {
            "passed": False,
            "error": f"{type(error).__name__}: {error}"[:500],
            "untuned": _untuned(model, example),
        }
    return {**line, "seconds": round(time.perf_counter() - started, 1)}


def _untuned(model: nn.Module, example: Any) -> str:
    """Whether torch.onnx exports the model itself, with a dynamic batch."""
    try:
        call = Call.of(model, example)
        with as_shipped(model):
            outputs = call.run(model, call.tensors)
            translate(model, call, tuple(outputs), None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "exported"


def main() -> None:
    """Run what is missing in the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_zoo", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", action="store_true", help="one model of each other class of timm, too")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no model after this time")
    given = parser.parse_args()
    known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {line["model"] for line in known}
    started = time.perf_counter()
    with given.out.open("a", encoding="utf-8") as file:
        for name in names(given.classes):
            if name in done or time.perf_counter() - started > 60 * given.minutes:
                continue
            known.append(once(name))
            file.write(json.dumps(known[-1], default=str) + "\n")
            file.flush()
            sys.stderr.write(f"{name}: {known[-1].get('error', 'equal')}\n")
    fair = [line for line in known if line["passed"] or line["untuned"] == "exported"]
    passed = sum(line["passed"] for line in fair)
    print(f"{passed} of {len(fair)} that torch.onnx exports untuned; {len(known) - len(fair)} that it does not")


if __name__ == "__main__":
    main()
