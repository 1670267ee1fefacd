"""Ties that training cuts are told, ties that it keeps are kept, and nothing that trains is shared."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import utcompile as utc
from utcompile.cli.fold import fold_run, no_checkpoint
from utcompile.graph.ties import ties_of

RULES = """version: 1
name: t
rules:
  - {name: w, match: {module: last}, insert: {weight: y, tuner: {kind: bias}}}
train: [%s]
"""
LORA = """version: 1
name: t
rules:
  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}
train: [%s]
"""


class Auto(nn.Module):
    """An autoencoder whose decoder has the encoder's weight; by one object, or by the same memory."""

    def __init__(self, how: str = "object") -> None:
        super().__init__()
        self.e, self.d, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 3)
        self.d.weight = self.e.weight if how == "object" else nn.Parameter(self.e.weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.d(self.e(x).relu()))


def loaded(model: nn.Module, folded: nn.Module) -> nn.Module:
    again = copy.deepcopy(model)
    again.load_state_dict(folded.state_dict(), strict=True)
    return again


def differs(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("how", ["object", "memory"])
@pytest.mark.parametrize("names", ["e.weight", "d.weight", "*.weight"])
def test_a_tied_parameter_trains_as_one(how: str, names: str) -> None:
    model, x = Auto(how).eval(), torch.randn(4, 8)
    before = model.e.weight.clone()
    plan = utc.match(utc.capture(model, x), RULES % f"'parameter:{names}'")
    assert {"e.weight", "d.weight"} <= set(plan.trained)
    tuned = plan.apply()
    assert tuned.get_parameter("e.weight") is tuned.get_parameter("d.weight")
    assert plan.parameters == tuned.trainable_parameters()[0]
    tuned(x).square().sum().backward()
    zoo.shake(tuned, 0.3)
    again = copy.deepcopy(tuned)
    assert again.get_parameter("e.weight") is again.get_parameter("d.weight")
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert report.is_original and ties_of(folded) == (("e.weight", "d.weight"),)
    with torch.no_grad():
        assert differs(loaded(model, folded)(x), tuned(x)) < 1e-5
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), model(x))
    assert torch.equal(model.e.weight, before) and torch.equal(model.d.weight, before)


@pytest.mark.parametrize("how", ["object", "memory"])
@pytest.mark.parametrize("name", ["e.weight", "d.weight"])
def test_a_tie_is_cut_in_so_many_words(how: str, name: str) -> None:
    model, x = Auto(how).eval(), torch.randn(4, 8)
    tuned = utc.match(utc.capture(model, x), RULES % f"'untied:{name}'").apply()
    assert tuned.trained == (name,)
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned.double().eval())
    assert report.renamed == ("d.weight is no longer tied to e.weight",) and not report.is_original
    assert "d.weight is no longer tied to e.weight" in no_checkpoint(report)
    with torch.no_grad():
        assert differs(folded(x.double()), tuned(x.double())) < 1e-9
        assert how == "memory" or differs(loaded(model, folded)(x), tuned(x.double())) > 1e-3  # which the report says


def test_the_command_writes_the_program_alone_and_says_which_tie_was_cut(tmp_path: Path) -> None:
    model, x = Auto().eval(), torch.randn(4, 8)
    tuned = utc.match(utc.capture(model, x), RULES % "'untied:d.weight'").apply()
    zoo.shake(tuned, 0.3)
    run: Any = SimpleNamespace(
        tuned=tuned.eval(),
        whole=tuned,
        example=(x,),
        manifest={"model": "a tied autoencoder"},
        choice=SimpleNamespace(as_dict=dict),
    )
    report, files = fold_run(run, tmp_path / "folded", strict=True)
    assert files == ["model.pt2", "report.json"] and "is no longer tied to e.weight" in no_checkpoint(report)
    assert "d.weight is no longer tied to e.weight" in (tmp_path / "folded" / "report.json").read_text()


def test_a_tie_that_tuners_cut_is_told_and_one_that_they_do_not_is_kept() -> None:
    model, x = Auto().eval(), torch.randn(4, 8)
    rules = LORA.replace("weight: h", "weight: h, all_uses: true") % "'pattern:head'"
    tuned = utc.match(utc.capture(model, x), rules).apply().eval()
    folded, report = utc.fold(tuned)  # not trained: both uses are still equal
    assert report.is_original and ties_of(folded) == (("e.weight", "d.weight"),)
    zoo.shake(tuned, 0.3)
    _, report = utc.fold(tuned)
    assert report.renamed == ("d.weight is no longer tied to e.weight",)
    captured = utc.capture(model, x)
    assert captured.ties == (("e.weight", "d.weight"),) and utc.fold(captured)[1].is_original


def step(tuned: nn.Module, call: Any) -> None:
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    call(tuned).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kept", [False, True])
def test_training_goes_on_and_the_folded_model_does_not_move(kept: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.b(self.a(x).relu()))

    x, rules = torch.randn(4, 8), LORA % "'pattern:head'"
    if kept:
        rules = rules.replace("weight: h", "sequential: h").replace("kind: lora, r: 2", "kind: adapter, dim: 2")
    tuned = utc.match(utc.capture(Net().eval(), x), rules).apply()
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned)
    assert bool(report.kept) is kept
    before = folded(x)
    step(tuned, lambda m: m(x))
    assert torch.equal(folded(x), before) and differs(tuned.eval()(x), before) > 1e-3
    frozen = folded.get_parameter("a.bias").data_ptr() == tuned.get_parameter("a.bias").data_ptr()
    assert frozen or not kept  # memory of frozen parts is shared


def test_statistics_that_follow_the_mode_are_the_folded_models_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(6, 8)
    tuned = utc.match(utc.capture(model.eval(), x, base="follow"), LORA % "'pattern:head'").apply()
    folded, _ = utc.fold(tuned)
    before = folded(x)
    tuned.train()
    tuned(x * 5 + 3)
    assert torch.equal(folded(x), before)


KW = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def _llama(tied: bool) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**KW, tie_word_embeddings=tied, use_cache=False))


def _t5(tied: bool) -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=48, **sizes, tie_word_embeddings=tied, decoder_start_token_id=0, use_cache=False)
    )


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("make", "train"),
    [(_llama, "model.embed_tokens.weight"), pytest.param(_t5, "shared.weight", marks=pytest.mark.full)],
)
def test_the_state_of_a_language_model_computes_what_it_says(make: Any, train: str, tied: bool) -> None:
    model, ids = make(tied).eval(), torch.randint(0, 48, (2, 6))
    example = {"input_ids": ids, **({"decoder_input_ids": ids} if make is _t5 else {})}
    tuned = utc.match(utc.capture(model, example), LORA % f"'parameter:{train}'").apply()
    zoo.shake(tuned, 0.05)
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert report.is_original and (len(ties_of(folded)) > 0) is (tied or make is _t5)
    with torch.no_grad():
        expected = tuned(**example)["logits"]
        assert differs(loaded(model, folded)(**example)["logits"], expected) < 1e-4  # float32, several layers


class Renormed(nn.Module):
    """A head that reads the table's memory, into which the table has just written; as a layer or as a function."""

    def __init__(self, as_function: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, 6, max_norm=0.5), nn.Linear(6, 12, bias=False)
        self.head.weight, self.as_function = self.table.weight, as_function

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = F.embedding(ids, self.table.weight, max_norm=0.5) if self.as_function else self.table(ids)
        y: torch.Tensor = self.head(x.relu())
        return y


@pytest.mark.parametrize("as_function", [False, True])
def test_a_weight_that_a_tied_table_writes_into_is_kept(as_function: bool) -> None:
    rules = """
    version: 1
    name: t
    rules:
      - {name: w, match: {op: linear}, insert: {weight: h, all_uses: true, tuner: {kind: lora, r: 2}}}
    train: []
    """
    torch.manual_seed(0)
    tuned = utc.compile(Renormed(as_function).eval(), rules, torch.randint(3, 6, (2, 4))).eval()
    nn.init.normal_(tuned.tuner("w/head/0").lora_B)  # type: ignore[arg-type]
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept"
    ids = torch.arange(12).reshape(3, 4)  # rows that no proof has scaled
    assert torch.equal(folded(ids), tuned(ids))
