"""PEFT's checkpoints, against the real package: both ways, equal outputs, and what does not go says why.

Everything runs in float64: the two programs then differ by the order of their sums alone, about 1e-15 of the largest
output, and a wrong scale, transposition or norm by far more than the 1e-12 that is asked for.
"""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.draws import examples
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

import utcompile as utc

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # transformers, on PEFT's call
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:.*groups > 1"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]
EXACT = 1e-12
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 24}
IDS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vit() -> nn.Module:
    return timm.create_model("test_vit", num_classes=3, img_size=64)


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=3)


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=32, num_labels=3))


def gpt2() -> nn.Module:
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2Model(config)


def albert() -> nn.Module:
    return AlbertModel(AlbertConfig(**SMALL, embedding_size=8, max_position_embeddings=32))


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True)
    )


def rules(op: str, tuner: str, train: str = "") -> str:
    return (
        f"version: 1\nname: t\nrules:\n  - name: l\n    match: {{op: {op}}}\n    except: [head]\n"
        f"    insert: {{weight: h, tuner: {{{tuner}}}, all_uses: true}}\n{train}\n"
    )


HEAD = 'train: ["pattern:head"]'
LORA, DORA = "kind: lora, r: 3, alpha: 5", "kind: dora, r: 3, alpha: 5, rslora: true"
CASES: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "vit": (vit, "lora/all_linear", IMAGES),
    "vit dora": (vit, rules("linear | conv", DORA, HEAD), IMAGES),
    "resnet": (resnet, rules("conv(groups=1)", "kind: lora, r: 2, alpha: 5, rslora: true", HEAD), IMAGES),
    "resnet dora": (resnet, rules("conv(groups=1)", DORA, HEAD), IMAGES),
    "bert": (bert, rules("linear | embedding", LORA, HEAD), IDS),
    "gpt2": (gpt2, rules("addmm | embedding", LORA), IDS),
    "gpt2 dora": (gpt2, rules("addmm | embedding", DORA), IDS),
    "albert": (albert, rules("linear | embedding", LORA), IDS),  # one layer, called twice
    "llama": (llama, rules("linear | embedding", LORA), IDS),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def compiled(model: nn.Module, how: Any, x: Any) -> utc.TunedModule:
    return utc.compile(model, how, x if isinstance(x, dict) else (x,))


@cache
def captured(make: Callable[[], nn.Module]) -> utc.CapturedModule:
    """One capture for all that is compiled from it, which has weights of its own.

    That it computes what its model computes is seen where PEFT's model, made from the model itself, gives the same.
    """
    return utc.capture(made(make), (IMAGES,) if make in (vit, resnet) else IDS, verify="shapes")


def compiled_again(make: Callable[[], nn.Module], how: Any) -> utc.TunedModule:
    return utc.match(copy.deepcopy(captured(make)), how).apply()


def output(model: nn.Module, x: Any) -> torch.Tensor:
    with torch.no_grad():
        y = model(**x) if isinstance(x, dict) else model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


def trained(model: nn.Module, x: Any) -> Any:
    """A few steps, and some more by chance, so that no B is zero and no magnitude what it was."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        y = model(**x) if isinstance(x, dict) else model(x)
        (y if isinstance(y, torch.Tensor) else y[0]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def into_peft(model: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


@pytest.mark.parametrize("case", CASES)
def test_both_ways(case: str, tmp_path: Path) -> None:
    make, how, x = CASES[case]
    model = made(make)
    tuned = trained(compiled_again(make, how), x)
    assert utc.save_peft(tuned, tmp_path / "ours") == tmp_path / "ours"
    theirs = into_peft(model, tmp_path / "ours")
    expected = output(tuned, x)
    assert error(output(theirs, x), expected) < EXACT < 1e-4 < error(output(model, x), expected)

    theirs.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        again = utc.load_peft(compiled_again(make, utc.peft_rules(folder)), folder).eval()
        assert torch.equal(output(again, x), expected)
    assert set(again.trained) == set(tuned.trained) and len(again.sites) == len(tuned.sites)
    utc.save_tuners(again, tmp_path / "run")  # the rules are text, and so a run can be opened again
    assert utc.RuleSet.load(again.ruleset.text).rules


def test_the_files_are_what_peft_writes(tmp_path: Path) -> None:
    model = made(vit)
    utc.save_peft(compiled(model, "lora/all_linear", IMAGES), tmp_path / "ours")
    config = peft.LoraConfig(
        r=8,
        target_modules=["qkv", "proj", "fc1", "fc2"],
        exclude_modules=["patch_embed.proj"],
        modules_to_save=["head"],
    )
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("ours", "theirs"))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    ours, theirs = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs"))
    assert ours.keys() <= theirs.keys()
    assert {k for k in ours if ours[k] != theirs[k]} == {"target_modules"}


# what PEFT can say about where its tuners are
CONFIGS: dict[str, dict[str, Any]] = {
    "suffixes": {"target_modules": ["query", "value"]},
    "regex": {"target_modules": r".*layer\.1.*(query|dense)"},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "excluded": {"target_modules": ["dense"], "exclude_modules": ["pooler.dense"]},
    "patterns": {
        "target_modules": ["query", "key", "dense"],
        "rank_pattern": {"query": 2, r"^bert.encoder.layer.0.*dense": 6},
        "alpha_pattern": {"layer.1.attention.self.key": 7},
        "use_rslora": True,
    },
    "saved": {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
    "sequence": {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "dropout": {"target_modules": ["word_embeddings", "query"], "lora_dropout": 0.1},
    "dora": {"target_modules": ["word_embeddings", "query"], "lora_dropout": 0.1, "use_dora": True},
    "gaussian": {"target_modules": ["query"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_trained_loads(kind: str, tmp_path: Path) -> None:
    model = made(bert)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{"r": 4, "lora_alpha": 9, **CONFIGS[kind]}))
    expected = output(trained(theirs, IDS), IDS)
    theirs.save_pretrained(tmp_path)
    tuned = compiled_again(bert, utc.peft_rules(tmp_path))
    assert torch.equal(output(tuned.eval(), IDS), output(model, IDS))
    utc.load_peft(tuned, tmp_path)
    assert error(output(tuned, IDS), expected) < EXACT < 1e-4 < error(output(model, IDS), expected)
    mine = {n for n, p in theirs.named_parameters() if "lora_A" in n or "lora_embedding_A" in n}
    assert len(tuned.sites) == len(mine)
    dropouts = {s.config.dropout for s in tuned.sites}
    assert dropouts == {"dropout": {0.0, 0.1}}.get(kind, {0.0})


class Named(nn.Module):
    """The end of one path is another path; PEFT compares ends."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.block = nn.Linear(4, 4), nn.Module()
        self.block.fc, self.block.xfc, self.block.conv = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block.xfc(self.block.fc(self.fc(x).tanh()).tanh()).tanh()
        return self.head(self.block.conv(y.mT).mT)


PATHS = ["fc", "block.fc", "block.xfc", "block.conv", "head"]
ALPHAS = st.integers(1, 20) | st.floats(0.25, 20)
SITE = st.tuples(st.integers(1, 4), ALPHAS, st.booleans())


@settings(max_examples=examples(6, full=24), deadline=None)
@given(
    st.dictionaries(st.sampled_from(PATHS), SITE, min_size=1),
    st.sampled_from(["lora", "dora"]),
    st.sampled_from(["", "module:head", "parameter:head.bias"]),
)
def test_any_sites_ranks_and_scales(
    tmp_path_factory: pytest.TempPathFactory, sites: dict[str, tuple[int, float, bool]], kind: str, train: str
) -> None:
    model, x, folder = made(Named), torch.randn(2, 5, 4, dtype=torch.float64), tmp_path_factory.mktemp("peft")
    lines = ["version: 1", "name: t", "rules:"]
    for path, (r, alpha, rslora) in sites.items():
        tuner = f"{{kind: {kind}, r: {r}, alpha: {alpha}, rslora: {str(rslora).lower()}}}"
        where = f"where: [h.path == '{path}']"
        lines.append(
            f"  - {{name: {path.replace('.', '_')}, match: {{op: linear | conv}}, {where}, insert: {{weight: h, tuner: {tuner}}}}}"
        )
    lines += [f"train: ['{train}']"] if train and "head" not in sites else []
    tuned = trained(compiled(model, "\n".join([*lines, ""]), x), x)
    utc.save_peft(tuned, folder)
    theirs = into_peft(model, folder)
    assert error(output(theirs, x), output(tuned, x)) < EXACT
    wrapped = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert wrapped == set(sites)
    again = utc.load_peft(compiled(model, utc.peft_rules(folder), x), folder).eval()
    assert error(output(again, x), output(tuned, x)) < EXACT


def test_a_trained_module_whose_name_ends_others(tmp_path: Path) -> None:
    """PEFT takes `block.fc` and `block.xfc` for `fc` too, and asks the checkpoint for them."""
    model, x = made(Named), torch.randn(2, 5, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['module:fc']").replace("except: [head]", "where: [h.path == 'head']")
    tuned = trained(compiled(model, how, x), x)
    utc.save_peft(tuned, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "fc",
        "block.fc",
        "block.xfc",
    ]
    assert error(output(into_peft(model, tmp_path), x), output(tuned, x)) < EXACT


class Doubling(nn.Linear):
    """A linear whose call is not that of a linear."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(2 * x, self.weight, self.bias)


class Odd(nn.Module):
    """One of each that PEFT leaves untuned, refuses or computes otherwise, and two that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(8, 8)
        self.grouped, self.dilated = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.reflect = nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect")
        self.transposed = nn.ConvTranspose1d(8, 8, 1)
        self.read, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)
        self.doubling = Doubling(8, 8)
        self.again = self.alias = nn.Linear(8, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.own = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.transposed(self.reflect(self.dilated(self.grouped(self.doubling(self.fine(x)).mT)))).mT
        y = F.linear(self.alias(self.again(self.twice(self.twice(y)))), self.read.weight) @ self.own
        return self.mha(y, y, y, need_weights=False)[0]


def test_what_peft_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    tuned = compiled(
        made(Odd), rules("linear | conv | conv_transpose | matmul", LORA).replace("    except: [head]\n", ""), x
    )
    with pytest.raises(utc.UtcError) as refused:
        utc.save_peft(tuned, tmp_path / "none")
    text = str(refused.value)
    for words in (
        "l/grouped/0: its groups=2, and PEFT's A reads all channels in each group",
        "l/dilated/0: its dilation=(2,), which PEFT's A does not have",
        "l/reflect/0: its padding_mode='reflect', and PEFT's A pads with zeros",
        "l/transposed/0: PEFT does not tune ConvTranspose1d",
        "l/again/0: it has two names in the model, and PEFT tunes the first alone",
        "l/doubling/0: Doubling computes with its weight in its own code",
        ": its weight is read without a call of the module, where PEFT's tuner has no effect",
        "it tunes own, and PEFT the weights of modules",
        "it tunes mha.in_proj_weight, and PEFT the weights of modules",
    ):
        assert words in text
    for site in tuned.sites:
        assert (site.id in text) == (site.path not in ("fine", "twice"))
    assert not (tmp_path / "none").exists()


TWO = """
version: 1
name: t
rules:
  - {name: a, match: {op: linear}, where: [h.path == 'fc'], insert: {weight: h, tuner: {kind: lora%s}}}
  - {name: b, match: {op: linear}, where: [h.path == 'block.fc'], insert: {%s}}
train: [%s]
"""


@pytest.mark.parametrize(
    ("first", "second", "train", "words"),
    [
        ("", "weight: h, tuner: {kind: dora}", "", "b/block.fc/0: its tuner is dora, others' lora, and PEFT has one for all"),
        (", dropout: 0.1", "weight: h, tuner: {kind: lora}", "", "b/block.fc/0: its dropout is 0.0, others' 0.1"),
        ("", "weight: h, tuner: {kind: ssf}", "", "b/block.fc/0: its tuner is weight ssf, and only lora and dora"),
        ("", "sequential: h, tuner: {kind: ia3}", "", "b/block.fc/0: its tuner is sequential ia3"),
        ("", "weight: h, tuner: {kind: lora, slices: [1/2]}", "", "b/block.fc/0: it tunes slices of a packed weight"),
        ("", "weight: h, tuner: {kind: lora}", "'parameter:fc.bias'", "a/fc/0, b/block.fc/0: it is in fc, which is trained itself"),
        ("", "weight: h, tuner: {kind: lora}", "'module:block.conv'", ""),
    ],
)  # fmt: skip
def test_what_peft_says_once(first: str, second: str, train: str, words: str, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    tuned = compiled(made(Named), TWO % (first, second, train), x)
    if not words:
        utc.save_peft(tuned, tmp_path)
        return
    with pytest.raises(utc.UtcError, match="PEFT cannot hold these sites") as refused:
        utc.save_peft(tuned, tmp_path)
    assert words in str(refused.value) and not list(tmp_path.iterdir())


class Bare(nn.Module):
    """A parameter of the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


def test_what_no_module_owns_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['parameter:scale']").replace("    except: [head]\n", "")
    with pytest.raises(utc.UtcError, match="PEFT cannot hold") as refused:
        utc.save_peft(compiled(made(Bare), how, x), tmp_path)
    assert "scale: it is trained itself, and no module owns it" in str(refused.value)
    with pytest.raises(utc.UtcError, match="save_peft takes a TunedModule, not Linear"):
        utc.save_peft(nn.Linear(2, 2), tmp_path)
    with pytest.raises(utc.UtcError, match="load_peft takes a TunedModule, not Linear"):
        utc.load_peft(nn.Linear(2, 2), tmp_path)


@pytest.fixture
def written(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    model, x = made(Named), torch.randn(2, 5, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['module:head']").replace(
        "    except: [head]\n", "    where: [h.path != 'head']\n"
    )
    return model, x, utc.save_peft(trained(compiled(model, how, x), x), tmp_path / "made")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "ADALORA"}, "ADALORA is not read"),
        ({"bias": "boft_only"}, 'bias: "boft_only"'),
        ({"lora_bias": True}, "the tensors of block.fc are not a whole tuner"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights: "pissa"'),
        ({"target_parameters": ["fc.weight", "fc.bias"]}, "which parameters of block.fc are tuned is unclear"),
        ({"target_parameters": "fc.weight"}, "target_parameters is no list of names"),
        ({"rank_pattern": ["fc"], "target_parameters": ["fc.weight"]}, "rank_pattern is no table"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"of_a_later_version": True}, "of_a_later_version: true"),
        ({"lora_alpha": "8}"}, "is no number"),
        ({"alpha_pattern": {"(": 2}}, "is no regular expression"),
        ({"use_dora": True}, "the tensors of block.fc are not a whole tuner"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    written: tuple[nn.Module, torch.Tensor, Path], change: dict[str, Any], words: str
) -> None:
    file = written[2] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(utc.UtcError) as refused:
        utc.peft_rules(written[2])
    assert words in str(refused.value)


def test_broken_files_are_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    folder = written[2]
    tensors = load_file(folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="there is no PEFT checkpoint here"):
        utc.peft_rules(folder / "none")
    save_file({k: v for k, v in tensors.items() if "lora" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="no tensors of LoRA"):
        utc.peft_rules(folder)
    save_file({"base_model.model.fc.lora_C.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="no tensor of a plain LoRA or DoRA"):
        utc.peft_rules(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(utc.UtcError, match="cannot be read") as refused:
        utc.peft_rules(folder)
    assert "save it again with save_pretrained" in str(refused.value)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(utc.UtcError, match="no configuration of PEFT"):
        utc.peft_rules(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(utc.UtcError, match="no JSON"):
        utc.peft_rules(folder)


def test_tuners_inside_tuners_are_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    file = written[2] / "adapter_model.safetensors"
    tensors = load_file(file)
    for inner in ("block.fc.base_layer", "fc.base_layer.in_proj"):
        inside = {f"base_model.model.{inner}.lora_{n}.weight": torch.ones(3, 3) for n in "AB"}
        save_file(tensors | inside, file)
        with pytest.raises(utc.UtcError, match="no tensor of a plain LoRA or DoRA") as refused:
            utc.peft_rules(written[2])
        assert inner in str(refused.value)


class Leaking(nn.Module):
    """Parameters that are also read outside of the calls in which PEFT changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.mha, self.own = nn.MultiheadAttention(8, 2, batch_first=True), Own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.mha(x, x, x)[0] @ self.mha.in_proj_weight[:8]) @ self.own.weight


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    "options", [{"target_modules": ["mha"]}, {"target_modules": [], "target_parameters": ["own.weight"]}]
)
def test_a_parameter_that_is_read_outside_of_its_module_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = made(Leaking), torch.randn(2, 5, 8, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match="does not fit the model") as refused:
        utc.load_peft(tuned, tmp_path)
    assert "where PEFT's tuner has no effect" in str(refused.value)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.tanh(self.conv(x)))


def test_a_grouped_convolution_that_is_called_twice_is_refused(tmp_path: Path) -> None:
    model, x = made(Twice), torch.randn(2, 8, 5, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["conv"])).save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match="its module is called several times"):
        utc.load_peft(tuned, tmp_path)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_statistics_that_peft_trained_are_refused(tmp_path: Path) -> None:
    """LayerNorm tuning of a BatchNorm moves its running statistics, which are frozen here."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LNTuningConfig(target_modules=["1"])).train()
    theirs(x)
    theirs.save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match=r"1\.running_mean.*it is frozen here, and other than the checkpoint's"):
        utc.load_peft(tuned, tmp_path)


@pytest.mark.parametrize("inputs", [False, True])
def test_factors_of_ia3_that_do_not_fit_are_refused(inputs: bool, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if inputs else [])
    model, x = nn.Sequential(nn.Linear(4, 6)).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path)
    other = f"kind: ia3, inputs: {str(not inputs).lower()}"
    tuned = compiled(model, rules("linear", other).replace("    except: [head]\n", ""), x)
    with pytest.raises(utc.UtcError, match="the checkpoint scales what its module"):
        utc.load_peft(tuned, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"feedforward_modules": [] if inputs else ["0"]}))
    with pytest.raises(utc.UtcError, match="are not on what it"):
        utc.peft_rules(tmp_path)


def gqa() -> nn.Module:
    config = LlamaConfig(**SMALL | {"num_attention_heads": 4}, num_key_value_heads=2, max_position_embeddings=32)
    return LlamaForCausalLM(config)


def gpt2_head() -> nn.Module:
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


POSITIONS = {"position_ids": torch.arange(3, 8).repeat(2, 1), "use_cache": False}  # behind a prefix of 3


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # by transformers, for PEFT
@pytest.mark.parametrize("make", [gqa, gpt2_head])
def test_prefix_tuning(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Rotary and learned positions; heads that share keys."""
    model = made(make)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    expected = output(theirs, IDS)
    tuned = utc.load_peft(utc.compile(model, utc.peft_rules(tmp_path), IDS | POSITIONS), tmp_path).eval()
    assert error(output(tuned, IDS | POSITIONS), expected) < EXACT < 1e-4 < error(output(model, IDS), expected)
    assert error(output(utc.fold(tuned)[0], IDS | POSITIONS), expected) < EXACT

    without = utc.compile(model, utc.peft_rules(tmp_path), IDS | {"use_cache": False})
    with pytest.raises(utc.UtcError, match=r"PEFT counts positions from 3 on .* without position_ids"):
        utc.load_peft(without, tmp_path)
    file = tmp_path / "adapter_config.json"
    said = json.loads(file.read_text())
    for change, words in (
        ({"task_type": "SEQ_CLS"}, "language models that only decode"),
        ({"num_layers": 5}, "do not fit num_layers"),
    ):
        file.write_text(json.dumps(said | change))
        with pytest.raises(utc.UtcError, match=words):
            utc.peft_rules(tmp_path)


def test_loading_is_all_or_nothing(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model, x, folder = written
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tuned = compiled(model, utc.peft_rules(folder), x)

    def refused(changed: dict[str, torch.Tensor], into: utc.TunedModule = tuned) -> str:
        before = {k: v.clone() for k, v in into.state_dict().items()}
        save_file({k: v.clone() for k, v in changed.items()}, file)  # without the fingerprint, as PEFT writes it
        with pytest.raises(utc.UtcError, match="does not fit the model") as caught:
            utc.load_peft(into, folder)
        assert all(torch.equal(v, before[k]) for k, v in into.state_dict().items())
        return str(caught.value)

    a, b = "base_model.model.block.fc.lora_A.weight", "base_model.model.block.fc.lora_B.weight"
    assert "lora/block.fc/0: the checkpoint has nothing for it" in refused(
        {k: v for k, v in tensors.items() if k not in (a, b)}
    )
    assert "block.fd: the model has no site there" in refused(
        tensors | {a.replace("fc", "fd"): tensors[a], b.replace("fc", "fd"): tensors[b]}
    )
    assert "lora/block.fc/0:lora_B: [4, 2] in the checkpoint, [4, 3] here" in refused(
        tensors | {b: tensors[b][:, :2].clone()}
    )
    head = "base_model.model.head.bias"
    assert "head.bias: it is trained here, and not in the checkpoint" in refused(
        {k: v for k, v in tensors.items() if k != head}
    )
    assert "head.bias: [3] in the checkpoint, [4] here" in refused(tensors | {head: torch.ones(3)})
    assert "neck.weight: the model has no such parameter" in refused(
        tensors | {"base_model.model.neck.weight": torch.ones(3)}
    )
    frozen = {"base_model.model.block.fc.base_layer.weight": model.block.fc.weight + 1}
    assert "block.fc.weight: it is frozen here, and other than the checkpoint's" in refused(tensors | frozen)
    scaled = compiled(model, utc.RuleSet.load(tuned.ruleset.text.replace("alpha: 5", "alpha: 6")), x)
    assert "its rank is 3 and its scale 2, in the checkpoint 3 and 1.66667" in refused(tensors, scaled)
    dora = compiled(model, utc.RuleSet.load(tuned.ruleset.text.replace("kind: lora", "kind: dora")), x)
    assert "it is dora, the checkpoint lora" in refused(tensors, dora)
    save_file(tensors | {"base_model.model.block.fc.base_layer.weight": model.block.fc.weight.detach()}, file)
    utc.load_peft(tuned, folder)  # frozen and the same


def test_another_base_is_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model, x, folder = written
    other = copy.deepcopy(model)
    nn.init.ones_(other.block.xfc.bias)
    with pytest.raises(utc.UtcError, match="trained on another base"):
        utc.load_peft(compiled(other, utc.peft_rules(folder), x), folder)


def test_modules_that_the_model_lacks_are_named(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double()
    with pytest.raises(utc.UtcError, match="matched 0 places, expected at least 3") as refused:
        compiled(model, utc.peft_rules(written[2]), torch.randn(2, 4, dtype=torch.float64))
    assert "nothing matches at fc, block.fc, block.xfc" in str(refused.value).replace(
        "block.fc, block.xfc, fc", "fc, block.fc, block.xfc"
    )
    assert "the model has: 0" in str(refused.value)


def test_a_failed_write_leaves_nothing(
    written: tuple[nn.Module, torch.Tensor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, folder = written
    tuned = compiled(model, utc.peft_rules(folder), x)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(utc.UtcError, match="cannot be written"):
            utc.save_peft(tuned, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(utc.UtcError, match="a checkpoint is a folder"):
        utc.save_peft(tuned, tmp_path / "file")


def test_many_modules_fit_into_rules(tmp_path: Path) -> None:
    """A rule's text has a limit; a large model has more paths than fit into one."""
    tensors = {}
    for i in range(400):
        for name in ("lora_A", "lora_B"):
            tensors[f"base_model.model.model.layers.{i}.self_attn.q_proj.{name}.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = utc.peft_rules(tmp_path).rules
    assert len(found) > 1 and sum(rule.expect.at_least for rule in found) == 400
