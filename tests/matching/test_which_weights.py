"""Which weights a rule means: every linear in any spelling, gated ffns, heads; and what a plan says it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import which_toys as toys
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import utcompile as utc

HEAD = "version: 1\nname: t\nrules:\n"


def rule(match: str, insert: str, more: str = "") -> str:
    return f"{HEAD}  - {{name: r, match: {match}, insert: {insert}{more}}}\n"


def lora(**fields: object) -> str:
    options = "".join(f", {k}: {v}" for k, v in fields.items())
    return f"{{weight: h, tuner: {{kind: lora, r: 2{options}}}}}"


def shaken(tuned: utc.TunedModule) -> utc.TunedModule:
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tuned.eval()
    return tuned


# --- every linear ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", toys.SPELLINGS)
@pytest.mark.parametrize("rules", ["lora/all_linear", "lora/dora_all_linear"])
def test_every_linear_is_every_spelling_of_it(how: str, rules: str) -> None:
    model, x = toys.Spelled(how).eval(), torch.randn(2, 5, 6)
    captured = utc.capture(model, x)
    plan = utc.match(captured, rules)
    assert [site.tunes["weight"] for site in plan.sites] == ["w"] and plan.left_out == ()
    assert plan.trained == ("out.weight", "out.bias")
    tuned = shaken(plan.apply())
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["absorbed"] and report.is_original
    other = torch.randn(3, 5, 6)
    assert torch.allclose(folded(other), tuned(other), atol=1e-5)  # float32 sums of 12 terms in another order
    fresh = toys.Spelled(how).eval()
    fresh.load_state_dict(folded.state_dict())
    assert torch.allclose(fresh(other), tuned(other), atol=1e-5)


@pytest.mark.parametrize("how", toys.SPELLINGS)
@pytest.mark.parametrize("kind", ["lora, r: 2", "dora, r: 2", "ia3"])
def test_slices_are_output_channels_in_every_spelling(how: str, kind: str) -> None:
    model, x = toys.Spelled(how).eval(), torch.randn(2, 5, 6)
    text = f"{HEAD}  - {{name: r, match: {{op: linear}}, except: head, insert: {{weight: h, tuner: {{kind: {kind}, slices: [1/3, 3/3]}}}}}}\n"
    tuned = shaken(utc.compile(model, text, x))
    folded, _ = utc.fold(tuned)
    assert torch.allclose(folded(x), tuned(x), atol=1e-5)
    moved = (dict(folded.named_parameters())["w"] - model.w) != 0
    channels = moved.any(0) if how in ("x @ W", "addmm") else moved.any(1)
    assert channels.tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_biases_of_addmm_are_biases() -> None:
    for how in ("addmm", "addmm, turned", "linear"):
        plan = utc.match(utc.capture(toys.Spelled(how).eval(), torch.randn(2, 5, 6)), "bitfit/biases")
        assert [site.tunes["bias"] for site in plan.sites] == ["b"], how


def test_a_plan_lists_the_matrices_that_it_leaves_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    plan = utc.match(utc.capture(model, torch.randn(2, 4)), rule("{module: '0'}", "{weight: y, tuner: {kind: lora}}"))
    assert plan.left_out == ("2.weight", "4.weight")
    assert "left out: 2 weight matrices: *.weight (2)" in str(plan) and plan.to_dict()["left_out"] == [
        "2.weight",
        "4.weight",
    ]
    adapters = utc.match(plan.module, rule("{op: relu}", "{sequential: h, tuner: {kind: adapter, dim: 2}}"))
    assert adapters.left_out == ()


class Packed(nn.Module):
    """An int8 layer with a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-9, 9, (6, 6), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)


class Formulas(nn.Module):
    """Linears as formulas, one of them by heads; an int8 layer; a table of indices, which is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.turned, self.heads = (nn.Parameter(torch.randn(*s)) for s in ((4, 6), (6, 6), (6, 2, 3)))
        self.lin, self.packed, self.head = nn.Linear(6, 6), Packed(), nn.Linear(6, 2)
        self.register_buffer("places", torch.arange(6).reshape(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("bsd,ed->bse", self.lin(torch.einsum("bsd,de->bse", x, self.w)).relu(), self.turned)
        y = torch.einsum("bsd,dhk->bshk", y, self.heads).flatten(2)[..., self.places.flatten()]
        return self.head(self.packed(y.flatten(0, 1)))


def test_formulas_and_quantised_layers_are_listed_too() -> None:
    captured = utc.capture(Formulas().eval(), torch.randn(2, 3, 4))
    assert utc.match(captured, "lora/all_linear").left_out == ("w", "turned", "heads", "packed.weight")
    tuned = rule("{class: Packed}", "{weight: y, tuner: {kind: lora, r: 2}}")
    assert "packed.weight" not in utc.match(captured, tuned).left_out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # torch.ao's
def test_packed_parameters_of_torch_are_listed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    only = {"0": torch.ao.quantization.default_dynamic_qconfig}
    captured = utc.capture(torch.ao.quantization.quantize_dynamic(model, only, dtype=torch.qint8), torch.randn(2, 8))
    assert utc.match(captured, "lora/all_linear").left_out == ("0.weight",)


class Tagger(nn.Module):
    def __init__(self, cls: type[nn.RNNBase]) -> None:
        super().__init__()
        self.emb, self.rnn, self.fc = nn.Linear(4, 6), cls(6, 5, batch_first=True), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.emb(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(torch.relu(self.fc(y)))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("form", ["op", "class", "module"])
def test_a_recurrent_layer_that_reads_a_packed_sequence_is_refused_by_name(cls: type[nn.RNNBase], form: str) -> None:
    captured = utc.capture(Tagger(cls).eval(), (torch.randn(3, 5, 4), torch.tensor([5, 3, 2])))
    kind = cls.__name__.lower()
    place = {"op": f"{{op: {kind}}}", "class": f"{{class: {cls.__name__}}}", "module": "{module: rnn}"}[form]
    capture = "h" if form == "op" else "y"
    with pytest.raises(utc.UtcError, match=f"the {kind} at rnn reads a PackedSequence"):
        utc.match(captured, rule(place, f"{{weight: {capture}, tuner: {{kind: lora, r: 2}}}}"))
    assert len(utc.match(captured, "lora/all_linear").sites) == 2


# --- gated ffns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "rules",
    [
        "u_tuning/single_ffn",
        "u_tuning/single_ffn_foldable",
        "adapter/adaptformer",
        "adapter/pfeiffer",
        "ia3/keys_values_ffn",
    ],
)
def test_rules_for_ffns_find_gated_ones(rules: str, packed: bool) -> None:
    x = torch.randn(2, 5, 8)
    tuned = utc.match(utc.capture(toys.Gated(packed).eval(), x), rules).apply()
    assert len(tuned.sites) == 1
    folded, report = utc.fold(shaken(tuned))
    assert torch.allclose(folded(x), tuned(x), atol=1e-5)
    assert (not report.kept) == (rules in ("u_tuning/single_ffn_foldable", "ia3/keys_values_ffn"))


def test_several_patterns_may_be_named_at_once() -> None:
    captured = utc.capture(toys.Gated().eval(), torch.randn(2, 5, 8))
    insert = "{parallel: x -> y, tuner: {kind: adapter, dim: 2}}"
    assert len(utc.match(captured, rule("ffn | gated_ffn", insert)).sites) == 1
    with pytest.raises(utc.UtcError, match="unknown pattern 'fnn'") as caught:
        utc.match(captured, rule("fnn | gated_ffn", insert))
    assert "did you mean 'ffn'" in str(caught.value.fix)
    with pytest.raises(utc.UtcError, match="the match offers no capture 'g'"):
        utc.match(captured, rule("ffn | gated_ffn", insert.replace("x -> y", "x -> g")))


# --- nothing found ----------------------------------------------------------------------------------------------------------


def test_what_is_here_instead_is_named() -> None:
    captured = utc.capture(toys.Gated().eval(), torch.randn(2, 5, 8))
    with pytest.raises(utc.UtcError, match="matched 0 places") as caught:
        utc.match(captured, rule("ffn", "{parallel: x -> y, tuner: {kind: adapter}}"))
    assert str(caught.value.why).startswith("the model has these named patterns: 1 gated_ffn")


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().sum().item()) % 3 + 1):
            x = self.layer(x)
        return x


def test_opaque_modules_are_named() -> None:
    model = nn.Sequential(Counted(), nn.Flatten(), nn.Linear(6, 2)).eval()
    captured = utc.capture(model, torch.randn(2, 6))
    assert [o.path for o in captured.report.opaque] == ["0"]
    with pytest.raises(utc.UtcError, match="matched 0 places") as caught:
        utc.match(captured, "lora/all_linear")
    assert str(caught.value.why).startswith("0 is one node of the graph, and nothing inside is matched: ")


# --- heads ----------------------------------------------------------------------------------------------------------------

TOKENS = (torch.randint(0, 40, (2, 5)), torch.randint(0, 2, (2, 5)))


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_of_a_language_model_stays_frozen_unless_it_is_named(tied: bool) -> None:
    captured = utc.capture(toys.Tokens(tied=tied).eval(), TOKENS)
    plan = utc.match(captured, "lora/all_linear")
    assert plan.trained == () and [s.path for s in plan.sites] == ["layer"]
    assert plan.notes == (
        "train: head.weight reads the vocabulary of words.weight back, and stays frozen; to train it, name it: "
        "parameter:head.weight",
    )
    assert plan.notes[0] in str(plan) and utc.fold(plan.apply())[1].is_original
    assert "head.weight" in utc.match(captured, "lora/all_linear", train=["module:head"]).trained
    with pytest.raises(utc.UtcError, match="there are no rules, and no parameter is trained") as caught:
        utc.match(captured, "probe/linear").apply()
    assert "reads the vocabulary" in str(caught.value.why)


@pytest.mark.parametrize("classes", [2, 16, 3])
def test_a_classifier_is_no_vocabulary_though_it_has_the_shape_of_the_types_or_positions(classes: int) -> None:
    plan = utc.match(utc.capture(toys.Tokens(classes).eval(), TOKENS), "lora/all_linear")
    assert plan.trained == ("head.weight", "head.bias") and plan.notes == ()


HEADLESS = {
    "ends in sigmoid": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid()), (2, 3, 8, 8)),
    "an embedding": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8)), (2, 6)),
    "a bounded regression": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Tanh()), (2, 6)),
}


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_model_without_a_classifier_is_not_refused(kind: str) -> None:
    model, size = HEADLESS[kind]
    captured, rules = (
        utc.capture(model.eval(), torch.randn(size)),
        "lora/all_conv" if len(size) == 4 else "lora/all_linear",
    )
    plan = utc.match(captured, rules)
    assert plan.trained == () and plan.notes[0].startswith("train: no classifier is trained: the model ends in ")
    plan.apply()
    assert utc.match(captured, rules, train=["parameter:2.bias"]).trained == ("2.bias",)


def test_what_is_trained_is_the_callers_to_say(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 6)
    tuned = utc.compile(model, "lora/all_linear", x, train=[])
    assert tuned.trained == () and tuned.ruleset.trains_instead == ()
    again = utc.RuleSet.load(tuned.ruleset, vars={"r": 2})
    assert again.train == () and again.trains_instead == ()
    tuned = utc.compile(model, "lora/all_linear", x, train=["parameter:0.bias"])
    assert tuned.trained == ("0.bias",)
    assert '"train": [' in (utc.save_tuners(tuned, tmp_path) / "manifest.json").read_text()
    for wrong, what in (
        (["head"], "is no line of `train:`"),
        (["pattern:haed"], "unknown pattern 'haed'"),
        (["module:x"], "selects no parameter"),
        ("pattern:head", "is a list of texts"),
    ):
        with pytest.raises(utc.UtcError, match=what):
            utc.compile(model, "lora/all_linear", x, train=wrong)


def test_a_linear_probe_has_no_tuner(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 6)
    tuned = utc.compile(model, "probe/linear", x)
    assert tuned.sites == () and tuned.trained == ("2.weight", "2.bias")
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == set(tuned.trained)
    shaken(tuned)
    again = utc.load_tuners(utc.compile(model, "probe/linear", x), utc.save_tuners(tuned, tmp_path)).eval()
    folded, report = utc.fold(tuned)
    assert torch.equal(again(x), tuned(x)) and torch.equal(folded(x), tuned(x)) and report.is_original
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), model(x))


# --- writes in place, sources of attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mask", "slice", "part", "input"])
@pytest.mark.parametrize("tuner", ["lora, r: 2", "dora, r: 2", "ssf", "bias"])
def test_a_write_behind_a_layer_does_not_stop_a_tuner_of_its_weight(how: str, tuner: str) -> None:
    model, given = toys.Written(how).eval(), (torch.randn(2, 5, 8), torch.rand(2, 5) > 0.5)
    text = rule("{module: layer}", f"{{weight: y, tuner: {{kind: {tuner}}}}}")
    tuned = shaken(utc.compile(model, text, given))
    folded, _ = utc.fold(tuned)
    fresh = toys.Written(how).eval()
    fresh.load_state_dict(folded.state_dict())
    assert torch.allclose(fresh(*given), tuned(*given), atol=1e-5)
    if how == "input" and tuner != "bias":
        # the gradient of a weight needs its layer's input: torch refuses, as it does where the model trains untuned
        for trained in (tuned, toys.Written(how)):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                trained(*given).sum().backward()
    else:
        tuned(*given).sum().backward()
        assert all(p.grad is not None for p in tuned.tuner("r/layer/0").parameters())
    with pytest.raises(utc.UtcError, match="is overwritten in place later"):
        utc.compile(toys.Written("mask").eval(), rule("{module: layer}", "{sequential: y, tuner: {kind: ssf}}"), given)


@pytest.mark.parametrize("module", [False, True])
def test_attention_of_three_sources_takes_prefixes(module: bool) -> None:
    given = torch.randn(2, 5, 8), torch.randn(2, 7, 6), torch.randn(2, 7, 4)
    tuned = utc.compile(toys.Sources(module).eval(), "prefix/prefix", given)
    assert len(tuned.sites) == 1
    folded, report = utc.fold(shaken(tuned))
    assert [s.status for s in report.sites] == ["constant"] and torch.allclose(folded(*given), tuned(*given), atol=1e-5)


# --- places that refuse ------------------------------------------------------------------------------------------------------


def test_a_place_that_refuses_its_tuner_is_an_error_or_passed_over_and_listed() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    captured, insert = utc.capture(model, torch.randn(2, 6)), "{weight: h, tuner: {kind: bias}}"
    with pytest.raises(utc.UtcError, match="this linear has no bias"):
        utc.match(captured, rule("{op: linear}", insert))
    plan = utc.match(captured, rule("{op: linear}", insert, ", on_refusal: skip"))
    assert [s.path for s in plan.sites] == ["2", "4"]
    assert [(s.rule, s.path) for s in plan.skipped] == [("r", "0")] and "this linear has no bias" in plan.skipped[
        0
    ].reason
    assert str(plan.skipped[0]) in str(plan) and plan.to_dict()["skipped"] == [plan.skipped[0].to_dict()]
    every = rule("{op: relu}", "{weight: h, tuner: {kind: bias}}", ", on_refusal: skip")
    with pytest.raises(utc.UtcError, match="none of the rules matches") as caught:
        utc.match(captured, every).apply()
    assert "skipped: r at 1: " in str(caught.value.why)
    with pytest.raises(utc.UtcError, match="cannot be combined with chain"):
        utc.RuleSet.load(rule("ffn", "{chain: y -> y, tuner: {kind: side}}", ", on_refusal: skip"))


# --- real models ------------------------------------------------------------------------------------------------------------


def _real(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    import transformers as hf

    torch.manual_seed(0)
    ids, plain = torch.randint(0, 40, (2, 5)), {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
    configs = {
        "GPT2": {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        "Falcon": {**plain, "num_attention_heads": 2},
        "Mamba": {**plain, "state_size": 4, "conv_kernel": 3, "time_step_rank": 4},
        "Llama": {**plain, "num_attention_heads": 2, "intermediate_size": 24, "tie_word_embeddings": True},
    }
    config = getattr(hf, f"{kind}Config")(**configs[kind], use_cache=False, bos_token_id=1, eos_token_id=2)
    model = getattr(hf, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))(config)
    return model.eval(), {"input_ids": ids}


@pytest.mark.full
@pytest.mark.parametrize("kind", ["GPT2", "Falcon", "Mamba", "Llama"])
def test_language_models_are_tuned_whole(kind: str) -> None:
    pytest.importorskip("transformers")
    model, given = _real(kind)
    captured = utc.capture(model, given)
    plan = utc.match(captured, "lora/all_linear")
    layers = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D", "FalconLinear")]
    assert len(plan.sites) == len(layers) - 1 and plan.left_out in (("lm_head.weight",), ())  # tied, it is no product's
    assert plan.trained == () and "reads the vocabulary" in plan.notes[0]
    rules = ("lora/all_linear", "lora/qv", "ia3/keys_values_ffn", "u_tuning/dual", "prefix/prefix")
    for name in rules if kind != "Mamba" else rules[:1]:
        tuned = shaken(utc.match(captured, name).apply())
        folded, _ = utc.fold(tuned)
        a, b = tuned(**given)["logits"], folded(**given)["logits"]
        assert (a - b).abs().max() <= 1e-5 * a.abs().max(), name


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # WavLM's own call of torch's attention
@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
def test_padded_sounds_are_tuned(kind: str) -> None:
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    convs = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    more = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    model = getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes, **convs, **more)).eval()
    given = {"input_values": torch.randn(2, 400), "attention_mask": torch.ones(2, 400, dtype=torch.long)}
    given["attention_mask"][1, 300:] = 0
    tuned = utc.compile(model, rule("{op: linear}", lora()), given)
    assert "feature_projection.projection" in {site.path for site in tuned.sites}
