"""`tuned.nested("blocks.*")`: one graph per region, the same bits, for sharding, running again and compiling by block."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import models as zoo
from support.processes import one_process_group
from support.saved import saved_bytes
from support.transformer_toys import RULES, Block, Transformer
from torch import nn

import utcompile as utc

Made = tuple[nn.Module, utc.CapturedModule, torch.Tensor]


@pytest.fixture(scope="module")
def made() -> Made:
    torch.manual_seed(0)
    model, x = Transformer().eval(), torch.randn(2, 5, 6)
    return model, utc.capture(model, (x,)), x


def tuned_of(made: Made, rules: str = "lora/all_linear", train: list[str] | None = None) -> utc.TunedModule:
    torch.manual_seed(0)
    tuned = utc.match(copy.deepcopy(made[1]), rules, train=train).apply()
    zoo.shake(tuned, 0.3)
    return tuned


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The outputs, and the gradients by their names inside a tuner or in the base."""
    model.zero_grad()
    torch.manual_seed(0)
    out: torch.Tensor = model(x)
    out.square().sum().backward()
    found = {n.rpartition("tuners.")[2]: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), found


def check_same(tuned: utc.TunedModule, nested: utc.TunedModule, x: torch.Tensor) -> None:
    (out, grads), (nested_out, nested_grads) = step(tuned, x), step(nested, x)
    assert torch.equal(out, nested_out) and grads.keys() == nested_grads.keys() and grads
    assert all(torch.equal(g, nested_grads[n]) for n, g in grads.items())
    with torch.no_grad(), utc.disable_tuners(tuned):
        base = tuned(x)
    with torch.no_grad(), utc.disable_tuners(nested):
        assert torch.equal(nested(x), base) and not torch.equal(base, out)


@pytest.mark.parametrize("rules", RULES)
def test_regions_compute_the_same_bits_with_their_own_parameters(made: Made, rules: str, tmp_path: Path) -> None:
    tuned, x = tuned_of(made, RULES[rules]), made[2]
    nested = tuned.nested("blocks.*")
    check_same(tuned, nested, x)
    calls = [str(n.target) for n in nested.graph.nodes if n.op == "call_module" and "blocks." in str(n.target)]
    assert calls == ["blocks.0", "blocks.1"]
    for path in calls:
        region = nested.get_submodule(path)
        assert isinstance(region, utc.TunedModule) and (region.sites or rules == "a side network")
        assert {n.split(".")[0] for n, _ in region.named_parameters()} <= {*dict(Block().named_children()), "tuners"}
    assert {id(p) for p in nested.parameters()} == {id(p) for p in tuned.parameters()}
    assert torch.equal(nested.tuner(tuned.sites[0].id)._parameters.get("lora_A", x), tuned.tuner(tuned.sites[0].id)._parameters.get("lora_A", x))  # fmt: skip
    for folder, module in (("flat", tuned), ("nested", nested)):
        utc.save_tuners(module, tmp_path / folder)
    assert (tmp_path / "flat/manifest.json").read_text() == (tmp_path / "nested/manifest.json").read_text()


def test_every_door_takes_a_nested_module(made: Made, tmp_path: Path) -> None:
    tuned, x = tuned_of(made, train=["module:head", "parameter:blocks.0.norm1.*"]), made[2]
    nested = tuned.nested("blocks.*")
    check_same(tuned, nested, x)
    assert nested.originals().keys() == tuned.originals().keys()
    assert nested.trainable_parameters() == tuned.trainable_parameters()
    out = nested(x)
    for other in (copy.deepcopy(nested), pickle.loads(pickle.dumps(nested))):
        assert torch.equal(other(x), out)
        zoo.shake(other, 0.2)
        utc.save_tuners(other, tmp_path)  # what it has now, not what the flat module had
        utc.load_tuners(other, tmp_path)
        again = tuned_of(made, train=["module:head", "parameter:blocks.0.norm1.*"])
        utc.load_tuners(again, tmp_path)
        assert torch.equal(again(x), other(x)) and not torch.equal(again(x), out)
    folded, report = utc.fold(nested)
    assert report.is_original
    torch.testing.assert_close(folded(x), out, rtol=1e-5, atol=1e-5)  # rounding of the folded weights
    with pytest.raises(utc.UtcError, match="cannot be exchanged"):
        nested.set_task("default")
    with pytest.raises(utc.UtcError, match="nested already"):
        nested.nested("blocks.*")
    double = copy.deepcopy(nested).double()
    utc.save_tuners(double, tmp_path / "double")
    assert all(p.dtype == torch.float64 for p in double.parameters())


def test_the_values_of_the_base_stay_those_of_the_base(made: Made, tmp_path: Path) -> None:
    """Those of what trains inside of regions and outside of them have numbers of their own in each."""
    model, x = made[0], made[2]
    train = ["parameter:blocks.0.norm1.*", "module:head", "parameter:blocks.1.norm1.*"]
    tuned = tuned_of(made, train=train)
    before = {name: value.clone() for name, value in tuned.originals().items()}
    zoo.shake(tuned, 0.5)
    nested = tuned.nested("blocks.*")
    for _ in range(2):
        utc.save_tuners(nested, tmp_path)
        for module in (nested, nested.as_one_graph(), tuned, copy.deepcopy(nested)):
            assert before.keys() == module.originals().keys()
            assert all(torch.equal(value, before[name]) for name, value in module.originals().items())
            with utc.disable_tuners(module):
                torch.testing.assert_close(module(x), model(x))
        zoo.shake(nested, 0.5)


def test_weights_that_were_sharded_are_in_memory_no_more(made: Made) -> None:
    tuned = tuned_of(made)
    nested = tuned.nested("blocks.*")
    region = nested.get_submodule("blocks.0")
    name = next(n for n, p in region.named_parameters() if p.requires_grad)
    whole = weakref.ref(region.get_parameter(name))
    owner, _, attribute = name.rpartition(".")
    region.get_submodule(owner)._parameters[attribute] = nn.Parameter(torch.zeros(1))  # as sharding does
    del tuned
    gc.collect()
    assert whole() is None


class Dropping(nn.Module):
    """Blocks that obey the mode, a norm with statistics, and a size that all of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5)) for _ in range(2)
        )
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        for block in self.blocks:
            x = block(x).reshape(n, 6) + self.shift
        return x


def test_regions_obey_the_mode() -> None:
    x = torch.randn(4, 6)
    tuned = utc.compile(Dropping(), "lora/all_linear", x, base="follow", train=[])
    zoo.shake(tuned, 0.3)
    nested = tuned.nested("blocks.*")
    for mode in (True, False):
        tuned.train(mode), nested.train(mode)
        state = copy.deepcopy(tuned.state_dict())
        out, grads = step(tuned, x)
        tuned.load_state_dict(state)
        nested_out, nested_grads = step(nested, x)
        assert torch.equal(out, nested_out) and all(torch.equal(g, nested_grads[n]) for n, g in grads.items())


@pytest.fixture
def group() -> Iterator[None]:
    with one_process_group():
        yield


def test_regions_are_sharded_one_by_one(made: Made, group: None, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    tuned, x = tuned_of(made), made[2]
    out, grads = step(tuned, x)
    nested, mesh = tuned.nested("blocks.*"), init_device_mesh("cpu", (1,))
    for region in nested.get_submodule("blocks").children():
        fully_shard(region, mesh=mesh)
    fully_shard(nested, mesh=mesh)
    nested_out = nested(x)
    nested_out.square().sum().backward()
    assert torch.equal(out, nested_out)
    named = {n.rpartition("tuners.")[2]: p.grad for n, p in nested.named_parameters() if p.grad is not None}
    assert all(torch.equal(named[n].full_tensor(), g) for n, g in grads.items())  # type: ignore[attr-defined]
    utc.save_tuners(nested, tmp_path)
    first = (tmp_path / "manifest.json").read_bytes()
    again = utc.match(made[1], "lora/all_linear").apply()
    utc.load_tuners(again, tmp_path)
    assert torch.equal(again(x), out)
    assert gathered_by(nested, tmp_path) == sum(p.requires_grad for p in nested.parameters())
    assert (tmp_path / "manifest.json").read_bytes() == first
    frozen = next(p for p in nested.parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen.mul_(2)
    assert gathered_by(nested, tmp_path) == len(list(nested.parameters())) - len(tuned.originals())
    with pytest.raises(utc.UtcError, match="another base"):
        utc.load_tuners(again, tmp_path)
    with torch.no_grad():
        frozen.div_(2)
    zoo.shake(again, 0.1)
    utc.save_tuners(again, tmp_path / "other")
    utc.load_tuners(nested, tmp_path / "other")
    torch.testing.assert_close(nested(x), again(x))
    with pytest.raises(utc.UtcError, match="distributed over processes"):
        utc.fold(nested)


def gathered_by(nested: nn.Module, folder: Path) -> int:
    """How many tensors are gathered to save a model whose base was saved before."""
    from torch.distributed.tensor import DTensor

    gather, count = DTensor.full_tensor, 0

    def counting(tensor: DTensor, **options: bool) -> torch.Tensor:
        nonlocal count
        count += 1
        return gather(tensor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DTensor, "full_tensor", counting)
        utc.save_tuners(nested, folder)
    return count


def test_a_checkpoint_around_each_region_frees_what_is_inside(made: Made, tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    tuned, x = tuned_of(made), torch.randn(8, 5, 6)
    nested = tuned.nested("blocks.*")
    regions = set(nested.get_submodule("blocks").children())
    before = saved_bytes(nested, lambda: nested(x))
    apply_activation_checkpointing(nested, check_fn=lambda m: m in regions)
    after = saved_bytes(nested, lambda: nested(x))
    assert after < 0.4 * before  # two blocks of some ten values each keep their inputs
    (out, grads), (nested_out, nested_grads) = step(tuned, x), step(nested, x)
    assert torch.equal(out, nested_out)
    plain = {n.replace("_checkpoint_wrapped_module.", ""): g for n, g in nested_grads.items()}
    assert all(torch.equal(g, plain[n]) for n, g in grads.items())
    utc.save_tuners(nested, tmp_path)
    utc.load_tuners(nested, tmp_path)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks whether inputs of a region have one
def test_each_region_is_compiled_by_itself(made: Made) -> None:
    tuned, x = tuned_of(made), made[2]
    nested = tuned.nested("blocks.*")
    for region in nested.get_submodule("blocks").children():
        region.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(nested(x), tuned(x))


class Twice(nn.Module):
    """One block that is called twice, and two blocks that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.a, self.b = (nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.b[0].weight = self.a[0].weight
        self.last = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(self.again(self.again(x) + 1)))
        result: torch.Tensor = self.last(x) @ self.last.weight
        return result


BAD = {
    "names nothing": (("block.*",), "the model has: a, again, b", "parts/not-found"),
    "a layer": (("last",), "last is no region", "parts/not-called"),
    "called twice": (("again",), "again is no single call", "parts/region"),
    "share a weight": (("a", "b"), "regions share a parameter", "parts/shared"),
    "shares with the rest": (("a",), "regions share a parameter", "parts/shared"),
    "no glob": (("a..b",), "no glob", "arguments/value"),
    "no text": ((3,), "globs of module paths", "arguments/type"),
    "none": ((), "takes one or several globs", "arguments/value"),
}


@pytest.fixture(scope="module")
def twice() -> utc.TunedModule:
    rules = """
version: 1
name: beside
rules:
  - {name: u, match: {op: relu}, insert: {parallel: x -> h, tuner: {kind: adapter, dim: 2}}}
"""
    return utc.compile(Twice(), rules, torch.randn(2, 6))


@pytest.mark.parametrize("name", BAD)
def test_bad_regions_are_refused_by_name(twice: utc.TunedModule, name: str) -> None:
    globs, said, code = BAD[name]
    with pytest.raises(utc.UtcError, match=said) as error:
        twice.nested(*globs)  # type: ignore[arg-type]
    assert error.value.code == code


def test_one_region_in_another_is_refused(made: Made) -> None:
    with pytest.raises(utc.UtcError, match=r"is inside the region blocks\.0") as error:
        tuned_of(made).nested("blocks.*", "blocks.0.mlp")
    assert error.value.code == "parts/overlap"


@pytest.mark.full
def test_a_part_of_a_model_is_nested_too() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Transformer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.body(x)
            return scores if bool(scores.sum() > 1e9) else scores.softmax(-1)

    x = torch.randn(2, 5, 6)
    tuned = utc.compile(Scored().eval(), "lora/all_linear", x, within="body")
    zoo.shake(tuned, 0.3)
    before = tuned(x)
    assert isinstance(tuned.body, utc.TunedModule)
    tuned.body = tuned.body.nested("blocks.*")
    assert torch.equal(tuned(x), before)
    folded, report = utc.fold(tuned)
    assert report.is_original and type(folded.body) is Transformer
    torch.testing.assert_close(folded(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "glob"), [("Bert", "bert.encoder.layer.*"), ("Llama", "model.layers.*"), ("GPT2", "**.h.*")]
)
def test_masks_and_positions_cross_regions_as_values(name: str, glob: str) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=50, pad_token_id=0)
    head = "ForMaskedLM" if name == "Bert" else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{head}")(config).eval()
    ids = torch.randint(1, 50, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    tuned = utc.compile(model, "lora/all_linear", inputs, train=[])
    zoo.shake(tuned, 0.3)
    nested = tuned.nested(glob)
    losses = []
    for module in (tuned, nested):
        module(**inputs).loss.backward()
        grads = {n.rpartition("tuners.")[2]: p.grad for n, p in module.named_parameters() if p.grad is not None}
        losses.append((module(**inputs).loss, {n: g.clone() for n, g in grads.items()}))
        module.zero_grad()
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(g, losses[1][1][n]) for n, g in losses[0][1].items())
    calls = [str(n.target) for n in nested.graph.nodes if n.op == "call_module"]
    assert len([path for path in calls if isinstance(nested.get_submodule(path), utc.TunedModule)]) == 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "rules", "glob"),
    [
        ("resnet", "lora/all_conv", "layer*.*"),
        ("swin", "u_tuning/dual", "layers.*.blocks.*"),
        ("convnext", "lora/all_conv", "stages.*"),
        ("vit", "prompt/vpt_deep", "blocks.*"),
        ("vit", "res_tuning/bypass", "blocks.*"),
        ("mixer", "ssf/all_layers", "blocks.*"),
        ("efficientnet", "convnet/residual_parallel", "blocks.*.*"),
    ],
)
def test_regions_of_real_models(kind: str, rules: str, glob: str) -> None:
    _, tuned, x = zoo.compiled(kind, rules)
    zoo.shake(tuned, 0.3)
    check_same(tuned, tuned.nested(glob), x)
