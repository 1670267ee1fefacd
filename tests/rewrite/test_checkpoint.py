"""Checkpoints: one identity in both files, strict about what matters, lenient about what is replaced."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.rewrite import pair, read_manifest
from utcompile.rewrite.base_print import fingerprint_of_format_1

RULES = """
version: 1
name: two
vars: {alpha: 8, act: gelu}
rules:
  - {name: low, match: {op: linear}, where: [h.path == 'fc'], insert: {weight: h, tuner: {kind: lora, r: 2, alpha: $alpha}}}
  - {name: side, match: {module: act}, insert: {parallel: x -> y, tuner: {kind: adapter, dim: 3, activation: $act}}}
train: ["module:head"]
"""
X = torch.linspace(-1, 1, 8).view(2, 4)


class Net(nn.Module):
    """A backbone with a buffer, an activation, and a head."""

    def __init__(self, act: nn.Module | None = None, classes: int = 3) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(4, 8), act or nn.GELU(), nn.Linear(8, classes)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.fc(x)) + self.shift)


def net(seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options).eval()


def tuned_of(model: nn.Module | None = None, rules: str = RULES, x: torch.Tensor = X, **vars: Any) -> utc.TunedModule:
    return utc.compile(model or net(), rules, (x,), vars=vars, verify="shapes")


@pytest.fixture(scope="module")
def trained() -> utc.TunedModule:
    tuned = tuned_of()
    zoo.shake(tuned, 0.3)
    return tuned.eval()


@pytest.fixture
def saved(trained: utc.TunedModule, tmp_path: Path) -> Path:
    return utc.save_tuners(trained, tmp_path / "run")


def refused(tuned: utc.TunedModule, folder: Path, *says: str) -> None:
    """Loading fails with one error that says all of this, and the model is unchanged."""
    before = copy.deepcopy(tuned.state_dict())
    with pytest.raises(utc.UtcError) as caught:
        utc.load_tuners(tuned, folder)
    assert all(text in str(caught.value) for text in says), caught.value
    assert all(torch.equal(v, before[k]) for k, v in tuned.state_dict().items())


def with_head_of(model: Net, seed: int) -> Net:
    torch.manual_seed(seed)
    model.head = nn.Linear(8, model.head.out_features)
    return model.eval()


# --- one identity ----------------------------------------------------------------------------------------------------


def test_files_of_different_saves_do_not_load(trained: utc.TunedModule, saved: Path, tmp_path: Path) -> None:
    other = tuned_of()
    utc.save_tuners(other, tmp_path / "other")
    for name in ("manifest.json", "tuners.safetensors"):
        mixed = shutil.copytree(saved, tmp_path / f"mixed {name}")
        shutil.copy(tmp_path / "other" / name, mixed / name)
        refused(other, mixed, "do not belong together", "take both files from the same save")


def test_a_pair_of_one_save_differs_in_its_manifest_alone_and_does_not_load(saved: Path, tmp_path: Path) -> None:
    """Equal tensors, other manifests: untrained tuners whose alpha differs."""
    a, b = tuned_of(alpha=4), tuned_of(alpha=5)
    b.load_state_dict(a.state_dict())
    utc.save_tuners(a, tmp_path / "a"), utc.save_tuners(b, tmp_path / "b")
    shutil.copy(tmp_path / "a" / "manifest.json", tmp_path / "b" / "manifest.json")
    refused(a, tmp_path / "b", "do not belong together")


def test_tensors_without_an_identity_do_not_go_with_a_manifest_that_has_one(saved: Path) -> None:
    save_file(load_file(saved / "tuners.safetensors"), saved / "tuners.safetensors")
    refused(tuned_of(), saved, "do not belong together", "(none)")


def test_permissions_are_equal_and_usual(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert {p.stat().st_mode for p in saved.iterdir()} == {usual}


def test_the_same_model_gives_the_same_bytes(trained: utc.TunedModule, saved: Path, tmp_path: Path) -> None:
    again = utc.save_tuners(trained, tmp_path / "again")
    assert all(p.read_bytes() == (again / p.name).read_bytes() for p in saved.iterdir())


def test_readers_of_a_folder_that_is_written_see_whole_pairs(trained: utc.TunedModule, tmp_path: Path) -> None:
    models = [copy.deepcopy(trained) for _ in range(3)]
    for value, model in enumerate(models[:2]):
        for parameter in model.parameters():
            parameter.data.fill_(value) if parameter.requires_grad else None
        utc.save_tuners(model, tmp_path)
    ended, errors = threading.Event(), []

    def write(model: utc.TunedModule) -> None:
        while not ended.is_set():
            try:
                utc.save_tuners(model, tmp_path)
            except Exception as error:
                errors.append(error)
                return

    writers = [threading.Thread(target=write, args=[model]) for model in models[:2]]
    for writer in writers:
        writer.start()
    seen = set()
    try:
        for _ in range(60):
            utc.load_tuners(models[2], tmp_path)
            seen.add(tuple(float(p.detach().mean()) for p in models[2].parameters() if p.requires_grad))
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert errors == [] and all(len(set(values)) == 1 for values in seen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "tuners.safetensors"]


def test_a_file_that_is_renamed_while_it_is_opened_is_looked_for_again(
    trained: utc.TunedModule, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def second_time(path: Path, **options: str) -> object:
        """What safetensors does where the file goes between its own opening and that of torch."""
        opened.append(path.name)
        if len(opened) <= 2:  # the pair's file and the one of the moment between two renames
            torch.UntypedStorage.from_file(str(path.with_name("gone")), shared=False, nbytes=1)
        return safe_open(path, **options)

    monkeypatch.setattr(pair, "safe_open", second_time)
    utc.load_tuners(trained, saved)
    assert len(opened) == 3 and opened[0] == opened[2] == "tuners.safetensors"


# --- strict about what matters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (RULES.replace("alpha: 8", "alpha: 16"), "alpha is 8.0 in the checkpoint, 16.0 here"),
        (RULES.replace("act: gelu", "act: relu"), "activation is 'gelu' in the checkpoint, 'relu' here"),
        (RULES.replace("kind: lora", "kind: dora"), "tuner is 'lora' in the checkpoint, 'dora' here"),
        (RULES.replace("parallel: x -> y", "sequential: y"), "inserted at another place"),
        (RULES.replace("r: 2", "r: 3"), "r is 2 in the checkpoint, 3 here"),
        (RULES.replace("name: low", "name: high"), "missing: high/fc/0:lora_A"),
    ],
)  # fmt: skip
def test_other_configs_do_not_load(saved: Path, rules: str, says: str) -> None:
    refused(
        tuned_of(rules=rules), saved, says if "missing" not in says else "the checkpoint's sites are not this model's"
    )


def test_how_a_tuner_is_computed_may_differ(trained: utc.TunedModule, saved: Path) -> None:
    other = tuned_of(rules=RULES.replace("r: 2,", "r: 2, how: reparametrised,"))
    assert torch.allclose(utc.load_tuners(other, saved).eval()(X), trained(X), atol=1e-6)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(approximate="tanh"), nn.LeakyReLU(0.3)])
def test_a_base_that_computes_something_else_with_the_same_weights_is_refused(saved: Path, act: nn.Module) -> None:
    refused(tuned_of(net(act=act)), saved, "computes something else with the same weights", "operation 1")


def test_a_base_that_is_wired_otherwise_is_refused(saved: Path) -> None:
    class Other(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.fc(x) + self.shift))

    torch.manual_seed(0)
    refused(tuned_of(Other().eval()), saved, "computes something else with the same weights")


def test_the_first_tensor_that_differs_is_named(saved: Path) -> None:
    for name, says in (("fc.weight", "its values are others"), ("shift", "its values are others")):
        model = net()
        with torch.no_grad():
            model.get_parameter(name).add_(1) if name != "shift" else model.shift.add_(1)
        refused(tuned_of(model), saved, f"{name} is the first of 1 tensors that differ", says)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_floating_type_is_cast_with_a_note(trained: utc.TunedModule, saved: Path, dtype: torch.dtype) -> None:
    other = tuned_of(net().to(dtype), x=X.to(dtype))
    with pytest.warns(UserWarning, match=f"were float32 in training, and are {str(dtype)[6:]} here"):
        utc.load_tuners(other, saved)
    # bfloat16 has 8 bits, and the values are about 1
    assert torch.allclose(other.eval()(X.to(dtype)).float(), trained(X), atol=1e-6 if dtype is torch.float64 else 0.05)


def test_a_narrow_run_loads_onto_the_wide_base_that_it_came_from(tmp_path: Path) -> None:
    utc.save_tuners(tuned_of(net().bfloat16(), x=X.bfloat16()), tmp_path)
    with pytest.warns(UserWarning, match="were bfloat16 in training"):
        utc.load_tuners(tuned_of(), tmp_path)
    with pytest.raises(utc.UtcError, match="only its dtype differs"):
        utc.load_tuners(tuned_of(net().half(), x=X.half()), tmp_path)
    refused(tuned_of(net(seed=1)), tmp_path, "its values are others")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_another_kind_of_dtype_is_refused(saved: Path, dtype: torch.dtype) -> None:
    from safetensors import safe_open

    path = saved / "tuners.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    name = "low/fc/0:lora_A"
    save_file({**tensors, name: tensors[name].to(dtype)}, path, metadata)
    refused(tuned_of(), saved, f"{name} is {str(dtype)[6:]} in the checkpoint, float32 here")


# --- lenient about what is replaced ----------------------------------------------------------------------------------


def test_a_checkpoint_loads_onto_the_same_backbone_with_a_fresh_head(trained: utc.TunedModule, saved: Path) -> None:
    other = tuned_of(with_head_of(net(), 7))
    assert torch.equal(utc.load_tuners(other, saved).eval()(X), trained(X))


def test_a_peft_checkpoint_of_ours_loads_onto_a_fresh_head_too(tmp_path: Path) -> None:
    rules = RULES[: RULES.index("  - {name: side")] + 'train: ["module:head"]\n'
    rules = rules.replace("vars: {alpha: 8, act: gelu}", "vars: {alpha: 8}")
    tuned = tuned_of(rules=rules)
    zoo.shake(tuned, 0.3)
    utc.save_peft(tuned, tmp_path)
    other = tuned_of(with_head_of(net(), 7), rules=rules)
    assert torch.equal(utc.load_peft(other, tmp_path).eval()(X), tuned.eval()(X))


def test_format_1_still_loads_with_a_warning(trained: utc.TunedModule, saved: Path) -> None:
    manifest = read_manifest(saved)
    old = {k: v for k, v in manifest.items() if k not in ("identity", "inputs", "versions")}
    old |= {"format": 1, "base": fingerprint_of_format_1(trained)}
    for site in old["sites"]:
        site.pop("place")
    (saved / "manifest.json").write_text(json.dumps(old))
    save_file(load_file(saved / "tuners.safetensors"), saved / "tuners.safetensors")
    with pytest.warns(UserWarning, match="format 1"):
        other = utc.load_tuners(tuned_of(), saved)
    assert torch.equal(other.eval()(X), trained(X))
    refused(tuned_of(with_head_of(net(), 7)), saved, "in format 1, the fingerprint includes the head")
    refused(tuned_of(alpha=16), saved, "alpha is 8.0")


# --- hostile folders -------------------------------------------------------------------------------------------------

FIELDS = [(), ("base",), ("base", "tensors"), ("base", "tensors", "fc.weight"), ("base", "operations"), ("base", "fingerprint"),
          ("sites",), ("sites", 0), ("sites", 0, "config"), ("rules",), ("rules", "vars"), ("rules", "text"), ("tensors",),
          ("inputs",), ("identity",), ("format",), ("versions",)]  # fmt: skip


def test_wrong_types_in_any_field_of_a_manifest_are_one_error(trained: utc.TunedModule, saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    other = copy.deepcopy(trained)
    for field in FIELDS:
        for wrong in (None, 3, 2**70, "x", [1], {"a": 1}, [[]], True, "../../x"):
            manifest = json.loads(text)
            if field:
                owner = manifest
                for key in field[:-1]:
                    owner = owner[key]
                owner[field[-1]] = wrong
            else:
                manifest = wrong
            (saved / "manifest.json").write_text(json.dumps(manifest))
            try:
                utc.load_tuners(other, saved)
            except utc.UtcError:
                continue
            assert field in ({("rules", "text")} | {("rules", "vars")} | {("inputs",)} | {("versions",)}), (
                field,
                wrong,
            )


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "manifest.json").write_text("[" * 200_000), "the manifest is no JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "the manifest is no JSON"),
        (lambda f: os.truncate(f / "manifest.json", 2**40), "the file is too large"),
        (lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json")), "it is no file"),
        (lambda f: ((f / "tuners.safetensors").unlink(), os.mkfifo(f / "tuners.safetensors")), "it is no file"),
        (lambda f: (f / "tuners.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"), "tensors cannot be read"),
    ],
)  # fmt: skip
def test_hostile_files_are_one_error(saved: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(saved)
    refused(tuned_of(), saved, says)


def test_nothing_is_written_through_a_link(trained: utc.TunedModule, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("mine")
    folder.mkdir()
    for name in ("manifest.json", "tuners.safetensors", f".manifest.json.{os.getpid()}", ".tuners.x.safetensors"):
        (folder / name).symlink_to(victim)
    utc.save_tuners(trained, folder)
    assert victim.read_text() == "mine"
    assert not (folder / "manifest.json").is_symlink() and not (folder / "tuners.safetensors").is_symlink()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "mkdir"])
def test_a_disk_that_fails_is_one_error_and_the_old_pair_stays(
    trained: utc.TunedModule, saved: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    other = copy.deepcopy(trained)
    zoo.shake(other)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(utc.UtcError, match=re.escape(os.strerror(code))):
            utc.save_tuners(other, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_paths_that_cannot_be_are_one_error(trained: utc.TunedModule, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("a\0b", "x" * 300, "", None, 3, b"run", ["run"], tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(utc.UtcError):
            utc.save_tuners(trained, folder)  # type: ignore[arg-type]
        with pytest.raises(utc.UtcError):
            utc.load_tuners(trained, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [3, [1], {3: 4}, {"format": 1}, {"base": {}}, "x"])
def test_extra_is_plain_data_under_its_own_keys(trained: utc.TunedModule, tmp_path: Path, extra: Any) -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    for wrong in (extra, circle):
        with pytest.raises(utc.UtcError, match="extra"):
            utc.save_tuners(trained, tmp_path / "run", extra=wrong)
    assert not (tmp_path / "run").exists()
