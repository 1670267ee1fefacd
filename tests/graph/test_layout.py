"""Layouts: on real models, on functions written by hand, and where nothing may be claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import models as zoo
from support.draws import examples
from torch import nn

import utcompile as utc
from tools.zoo.rows import Task
from tools.zoo.work import specimen_of
from utcompile.graph import KINDS, GraphView, Layout, operation, tensor, value_of
from utcompile.graph.axes import Atom, Origin, regrouped, resolved
from utcompile.graph.flow import Flow
from utcompile.graph.layout import visit


def view_of(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> GraphView:
    captured = utc.capture(model.eval(), inputs, verify="shapes", **options)
    return GraphView(captured.graph, captured)


def layout_at(view: GraphView, name: str) -> Layout | None:
    (node,) = [n for n in view.nodes if n.name == name]
    return view.layouts[node]


def shown(view: GraphView, name: str) -> tuple[str | None, str]:
    layout = layout_at(view, name)
    return (layout.kind, str(layout)) if layout else (None, "")


def counted(view: GraphView) -> Counter[str | None]:
    return Counter(found.kind for found in view.layouts.values() if found)


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> Callable[[str], GraphView]:
    known: dict[str, GraphView] = {}

    def view(kind: str) -> GraphView:
        if kind not in known:
            known[kind] = GraphView(zoo.captured(kind).graph, zoo.captured(kind))
        return known[kind]

    return view


def test_a_resnet_is_feature_maps_to_its_head(models: Callable[[str], GraphView]) -> None:
    view = models("resnet")
    assert counted(view).keys() == {"NCHW", "vectors"}
    unknown = [n.name for n in view.nodes if value_of(n) and n.op != "get_attr" and not view.layouts[n]]
    assert not unknown


def test_swin_is_channels_last_with_windows_and_heads_inside(models: Callable[[str], GraphView]) -> None:
    view = models("swin")
    assert shown(view, "patch_embed_proj") == ("NCHW", "B C H W")
    assert shown(view, "layers_0_blocks_0_norm1") == ("NHWC", "B H W C")
    assert shown(view, "layers_0_blocks_0_add") == ("NHWC", "B H W C")
    assert shown(view, "layers_0_blocks_0_permute") == ("windows", "B h w h w C")
    assert shown(view, "layers_0_blocks_0_attn_qkv") == ("windows", "(B h w) (h w) C")
    assert shown(view, "layers_0_blocks_0_mlp_fc1") == ("tokens", "B (H W) C")
    for node in view.by_class["sdpa"]:
        q, k, v = view.operations[node].inputs[:3]
        assert [view.layouts[n].kind for n in (q, v)] == ["heads", "heads"]  # type: ignore[union-attr]
        assert view.channel_axis[q] == 3 and view.layouts[k]
    assert layout_at(view, "layers_0_blocks_0_attn_matmul") is None  # scores have no channels
    assert shown(view, "layers_1_downsample_norm") == ("NHWC", "B h w (w h C)")


def test_a_vit_is_tokens_with_heads_at_attention(models: Callable[[str], GraphView]) -> None:
    view = models("vit")
    assert counted(view).keys() == {
        "NCHW",
        "NHWC",
        "tokens",
        "heads",
        "vectors",
    }  # NHWC: on the way from patches to tokens
    for node in view.by_class["sdpa"]:
        for operand in (*view.operations[node].inputs[:3], node):
            assert str(view.layouts[operand]) == "B heads N C".replace("C", "c")
    for node in view.by_class["layer_norm"]:
        assert view.layouts[node].kind in ("tokens", "heads", "vectors")  # type: ignore[union-attr]


def test_a_convnext_goes_to_channels_last_and_back(models: Callable[[str], GraphView]) -> None:
    view = models("convnext")
    for node in view.by_class["depthwise_conv"]:
        assert shown(view, node.name)[0] == "NCHW"
    kinds = [view.layouts[n].kind for n in view.by_class["permute"]]  # type: ignore[union-attr]
    assert set(kinds) == {"NCHW", "NHWC"} and len(kinds) > 4


def test_a_mixers_transposed_tokens_keep_their_channels(models: Callable[[str], GraphView]) -> None:
    view = models("mixer")
    assert shown(view, "blocks_0_transpose") == ("NCL", "B C (H W)")
    assert shown(view, "blocks_0_mlp_tokens_fc2") == (None, "B K C")  # what the layer makes
    assert shown(view, "blocks_0_transpose_1") == ("tokens", "B (H W) C")


@pytest.mark.parametrize("name", [pytest.param("coat_tiny", marks=pytest.mark.full), "mobilevit_xxs"])
def test_hybrids_have_feature_maps_tokens_and_heads(name: str) -> None:
    model = timm.create_model(name)
    view = view_of(model, torch.randn(1, *model.default_cfg["input_size"]), dynamic=())
    kinds = counted(view)
    assert kinds["NCHW"] > 10 and kinds["heads"] > 3 and kinds["tokens"] + kinds["windows"] > 3
    for node in view.by_class["sdpa"]:
        assert view.channel_axis[node] is not None


def test_audio_is_sequences_then_tokens() -> None:
    specimen = specimen_of(Task("transformers", "wav2vec2"))
    captured = utc.capture(specimen.model, specimen.inputs, dynamic=(), verify="shapes")
    view = GraphView(captured.graph, captured)
    for node in view.by_class["conv1d"]:
        assert shown(view, node.name) == ("NCL", "B C L") or shown(view, node.name) == ("NCL", "B C N"), node
    for node in view.by_class["sdpa"]:
        assert view.layouts[node].kind == "heads"  # type: ignore[union-attr]
    for node in view.by_class["layer_norm"]:
        assert view.layouts[node].kind in ("tokens", "NCL")  # type: ignore[union-attr]


def test_a_recurrent_model_is_tokens() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 12), nn.Linear(16, 5)
            self.lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(self.table(ids))[0])

    view = view_of(Tagger(), torch.randint(30, (2, 7)))
    kinds = {n.name: view.layouts[n] for n in view.nodes if value_of(n)}
    assert kinds["ids"] is None
    assert [k.kind for n, k in kinds.items() if k] == ["tokens"] * 3


# --- written by hand --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A function of feature maps (B, 12, 8, 8) that a convolution made."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 12, 3, padding=1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(x))


def after(function: Callable[[torch.Tensor], torch.Tensor]) -> Layout | None:
    view = view_of(Net(function), torch.randn(2, 3, 8, 8))
    (node,) = view.nodes[-1].all_input_nodes
    found = view.layouts[node]
    assert found is None or found.axis == view.channel_axis[node]
    return found


KNOWN: list[tuple[Callable[[torch.Tensor], torch.Tensor], str | None, int, str]] = [
    (lambda x: x, "NCHW", 1, "B C H W"),
    (lambda x: x.permute(0, 2, 3, 1), "NHWC", 3, "B H W C"),
    (lambda x: x.movedim(1, -1).contiguous() * 2, "NHWC", 3, "B H W C"),
    (lambda x: x.flatten(2), "NCL", 1, "B C (H W)"),
    (lambda x: x.flatten(2).mT, "tokens", 2, "B (H W) C"),
    (lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 64, 3, 4), "heads", 3, "B (H W) heads c"),
    (lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 64, 3, 4).transpose(1, 2), "heads", 3, "B heads (H W) c"),
    (lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 64, 3, 4).transpose(1, 2).flatten(0, 1), "heads", 2, "(B heads) (H W) c"),
    (lambda x: x.flatten(2).mT.reshape(-1, 64, 3, 4).transpose(1, 2).transpose(1, 2).flatten(2), "tokens", 2, "B (H W) C"),
    (lambda x: x.view(-1, 12, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 12), "windows", 2, "(B h w) (h w) C"),
    (lambda x: x.view(-1, 12, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16, 12), "windows", 3, "B (h w) (h w) C"),
    (lambda x: x.view(-1, 12, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).permute(0, 5, 1, 3, 2, 4).reshape(-1, 12, 8, 8), "NCHW", 1, "B C H W"),
    (lambda x: x.view(-1, 3, 4, 8, 8), "groups", 2, "B heads c H W"),
    (lambda x: x.view(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8), "NCHW", 1, "B (c heads) H W"),
    (lambda x: x.mean((2, 3)), "vectors", 1, "B C"),
    (lambda x: x.mean((2, 3), keepdim=True), "NCHW", 1, "B C 1 1"),
    (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), "vectors", 1, "B C"),
    (lambda x: x[:, :, 1:, ::2], "NCHW", 1, "B C H W"),
    (lambda x: x[..., None], "NCDHW", 1, "B C H W 1"),
    (lambda x: x[:, :, 0], "NCL", 1, "B C W"),
    (lambda x: x.chunk(3, 1)[1], "NCHW", 1, "B C H W"),
    (lambda x: torch.cat([x, x.relu()], 1), "NCHW", 1, "B C H W"),
    (lambda x: F.pad(x, (1, 1, 1, 1)).roll(1, 2), "NCHW", 1, "B C H W"),
    (lambda x: x.flatten(2).mT.view(-1, 64, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)[1], "heads", 3, "B heads (H W) c"),
    (lambda x: torch.einsum("bchw->bhwc", x), "NHWC", 3, "B H W C"),
    (lambda x: x.permute(2, 3, 0, 1).flatten(0, 1), "LNC", 2, "(H W) B C"),
    (lambda x: x.repeat_interleave(2, 1), "NCHW", 1, "B (C ?) H W"),
    (lambda x: F.interpolate(x, scale_factor=2), "NCHW", 1, "B C H W"),
    (lambda x: F.unfold(x, 3, padding=1), "NCL", 1, "B (C ?) N"),
    (lambda x: x.unsqueeze(2).expand(-1, -1, 5, -1, -1), "NCDHW", 1, "B C ? H W"),
    (lambda x: x.reshape(-1, 12, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).flatten(3), "NHWC", 3, "B h w (h w C)"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "kind", "axis", "text"), KNOWN, ids=[str(i) for i in range(len(KNOWN))])
def test_layouts_of_feature_maps_moved_about(function: Any, kind: str, axis: int, text: str) -> None:
    found = after(function)
    assert found is not None and (found.kind, found.axis, str(found)) == (kind, axis, text)
    assert kind in KINDS


UNKNOWN: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x.mean(1),
    lambda x: x.amax(1, keepdim=True),
    lambda x: x.flatten(2) @ x.flatten(2).mT,  # a Gram matrix: channels on both
    lambda x: x.flatten(2).mT @ x.flatten(2),  # scores
    lambda x: x.flatten(2).mT.reshape(-1, 64, 3, 4).transpose(1, 2).mean(-1),  # one number per head
    lambda x: x.flatten(0, 1),  # batch and channels on one axis
    lambda x: x.reshape(-1, 8, 96)[:, :, :90].reshape(-1, 9, 80),  # no axis survives
    lambda x: torch.fft.fft(x.flatten(2), dim=1).real,  # frequencies over channels
    lambda x: x.flatten(2).cumsum(1),
    lambda x: x.argmax(1),
    lambda x: torch.arange(5.0) * x.sum(),
]


@pytest.mark.parametrize("function", UNKNOWN, ids=[str(i) for i in range(len(UNKNOWN))])
def test_what_has_no_channels_has_no_layout(function: Any) -> None:
    assert after(function) is None


def test_inputs_are_known_by_what_reads_them() -> None:
    assert layout_at(view_of(nn.Sequential(nn.Linear(8, 3)), torch.randn(2, 5, 8)), "input_1").kind == "tokens"  # type: ignore[union-attr]
    assert layout_at(view_of(nn.Sequential(nn.Conv1d(8, 3, 3)), torch.randn(2, 8, 5)), "input_1").kind == "NCL"  # type: ignore[union-attr]
    assert layout_at(view_of(nn.Sequential(nn.Conv3d(1, 3, 3)), torch.randn(2, 1, 5, 5, 5)), "input_1").axis == 1  # type: ignore[union-attr]
    assert layout_at(view_of(nn.Sequential(nn.ReLU()), torch.randn(2, 8, 5)), "input_1") is None
    assert (
        layout_at(view_of(nn.Sequential(nn.Flatten(), nn.Linear(40, 3)), torch.randn(2, 8, 5)), "_1").kind == "vectors"
    )  # type: ignore[union-attr]


def test_atoms_regroup_as_row_major_reshapes_do() -> None:
    a, b = Origin(6, "channel", 0), Origin(4, "space", 1)
    first, second = regrouped([Atom(a, 1, 6), Atom(b, 1, 4)], (3, 8))
    assert first == (Atom(a, 2, 3),) and second == (Atom(a, 1, 2), Atom(b, 1, 4))
    assert regrouped([Atom(a, 1, 6), Atom(b, 1, 4)], (4, 6)) == [None, None]
    assert regrouped([Atom(a, 1, 6), Atom(b, 1, 4)], (2, 3, 4))[2] == (Atom(b, 1, 4),)
    assert regrouped([Atom(a, 1, 6), Atom(b, 1, 4)], (5, 4)) == [None, None]


# --- what a claim means -----------------------------------------------------------------------------------------------

HEADS, INNER = 6, 4
WIDTH = HEADS * INNER
STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "swap last": lambda x: x.transpose(-1, -2),
    "swap first": lambda x: x.transpose(1, 2),
    "rotate": lambda x: x.movedim(1, -1),
    "rotate back": lambda x: x.movedim(-1, 1),
    "flatten last": lambda x: x.flatten(-2),
    "flatten middle": lambda x: x.flatten(1, 2) if x.dim() > 2 else x,
    "split heads": lambda x: x.unflatten(-1, (-1, INNER)) if x.shape[-1] % INNER == 0 else x,
    "split second": lambda x: x.unflatten(1, (-1, INNER)) if x.shape[1] % INNER == 0 else x,
    "split in two": lambda x: x.unflatten(1, (2, -1)) if x.shape[1] % (2 * INNER) == 0 else x,
    "merge batch": lambda x: x.flatten(0, 1) if x.dim() > 2 else x,
    "softmax": lambda x: x.softmax(-1),
    "normalise": lambda x: F.layer_norm(x, x.shape[-1:]),
    "residual": lambda x: x + torch.tanh(x),
    "gate": lambda x: x * x.mean(-1, keepdim=True).sigmoid(),
    "pool": lambda x: x.mean(1, keepdim=True),
    "sum": lambda x: x.sum(-1) if x.dim() > 2 else x,
    "reverse": lambda x: x.flip(1),
    "reverse last": lambda x: x.flip(-1),
    "shift": lambda x: x.roll(1, -1),
    "shift second": lambda x: x.roll(2, 1),
    "mirror": lambda x: x + x.flip(1),
    "shift all": lambda x: x.roll(1),
    "shuffle": lambda x: F.channel_shuffle(x, 2) if x.dim() > 2 and x.shape[1] % 2 == 0 else x,
    "crop": lambda x: x[:, : max(1, x.shape[1] - INNER)],
    "first": lambda x: x[:, 0] if x.dim() > 2 else x,
    "pad": lambda x: F.pad(x, (0, INNER)),
    "double": lambda x: torch.cat([x, x.cos()], 1),
    "repeat": lambda x: x.repeat_interleave(INNER, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "gram": lambda x: x @ x.transpose(-1, -2),
    "square": lambda x: x.transpose(-1, -2) @ x,
    "cumsum": lambda x: x.cumsum(-1),
}  # fmt: skip


class Chain(nn.Module):
    """A layer of WIDTH output channels, then steps."""

    def __init__(self, layer: nn.Module, steps: list[str]) -> None:
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(x)[-1]

    def values(self, x: torch.Tensor) -> list[torch.Tensor]:
        made = [self.layer(x)]
        for step in self.steps:
            if made[-1].dim() < 7:
                made.append(STEPS[step](made[-1]))
        return made


def permuted(layer: nn.Module, order: torch.Tensor) -> nn.Module:
    """The same layer with its output channels in another order."""
    other = type(layer).__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other._parameters = {k: nn.Parameter(p.detach()[order]) for k, p in layer.named_parameters()}
    return other


def is_permutation_along(axis: int, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether b's slices along an axis are a's in some order."""
    left, right = (t.movedim(axis, 0).reshape(t.shape[axis], -1) for t in (a, b))
    distance = (left[:, None] - right[None]).abs().amax(-1)
    near = distance < 1e-9 * (1 + a.abs().max())
    return bool(near.any(0).all() and near.any(1).all())


def are_divided_between_heads(view: GraphView) -> bool:
    """Whether a permutation within each head keeps the parts together into which a graph divides its channels."""
    flow = Flow(view.operations, lambda node: operation(node, view.module))
    for node in view.nodes:
        visit(flow, node)
    atoms = [a for axes in flow.axes.values() for axis in axes for a in resolved(axis) if a.origin.makers]
    return all(a.stride % INNER == 0 or (a.stride == 1 and a.size % INNER == 0) for a in atoms)


MIXING = {"shift", "shift second", "shift all", "shuffle", "mirror"}  # after these a claim may name no makers


@settings(max_examples=examples(25, full=120), deadline=None)
@example(kind="linear", steps=["shift", "split heads", "shift"], order=[0, 1, 3, 2])
@example(kind="linear", steps=["shift second", "split heads", "reverse last"], order=[0, 1, 3, 2])
@example(kind="linear", steps=["split heads", "swap last", "shift"], order=[0, 1, 3, 2])
@example(kind="linear", steps=["split heads", "swap last", "flatten last", "shift"], order=[0, 1, 3, 2])
@example(kind="linear", steps=["split heads", "shift", "flatten last", "split heads"], order=[0, 1, 3, 2])
@example(kind="linear", steps=["split heads", "shift", "split heads", "swap last"], order=[1, 0, 3, 2])
@example(kind="conv1d", steps=["shift second", "double", "split second"], order=[0, 1, 3, 2])
@example(kind="conv1d", steps=["shuffle", "split second"], order=[0, 1, 3, 2])
@example(kind="conv1d", steps=["shuffle", "first"], order=[0, 1, 3, 2])
@example(kind="conv1d", steps=["mirror"], order=[0, 1, 3, 2])
@example(kind="conv1d", steps=["split second", "mirror"], order=[0, 1, 3, 2])
@example(kind="conv1d", steps=["shift second", "residual", "mirror", "double"], order=[0, 1, 3, 2])
@given(
    kind=st.sampled_from(["linear", "conv1d", "conv2d"]),
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=7),
    order=st.permutations(range(INNER)),
)
def test_permuting_the_makers_channels_permutes_exactly_the_claimed_axis(
    kind: str, steps: list[str], order: list[int]
) -> None:
    torch.manual_seed(0)
    layer, x = {
        "linear": (nn.Linear(5, WIDTH), torch.randn(2, 5, 5)),
        "conv1d": (nn.Conv1d(5, WIDTH, 1), torch.randn(2, 5, 6)),
        "conv2d": (nn.Conv2d(5, WIDTH, 3, padding=1), torch.randn(2, 5, 4, 6)),
    }[kind]
    layer, x = layer.double(), x.double()
    chain = Chain(layer, steps)
    try:
        plain = chain.values(x)
    except (RuntimeError, IndexError):  # a step that these shapes do not allow
        return
    view = view_of(chain, x, dynamic=())
    captured = {n.name: n for n in view.nodes}
    assert captured["layer"] in view.by_class[kind]
    within = torch.tensor([head * INNER + i for head in range(HEADS) for i in order])
    other = Chain(permuted(layer, within), steps).values(x)
    (end,) = view.nodes[-1].all_input_nodes
    found = view.layouts[end]
    value = plain[-1]
    assert tuple(tensor(end).shape) == tuple(value.shape)
    if not are_divided_between_heads(view):
        return
    if found is not None and not MIXING & {*steps}:
        assert captured["layer"] in found.made_by
    if found is not None and captured["layer"] in found.made_by:
        assert is_permutation_along(found.axis, value, other[-1]), (steps, found)


def test_where_reads_layouts() -> None:
    rules = "version: 1\nname: r\ntuners: {t: {kind: lora, r: 2}}\nrules:\n  - name: r\n    match: {op: linear}\n    where: [\"x.layout == 'windows'\"]\n    insert: {weight: h, tuner: t}\n"
    plan = utc.match(zoo.captured("swin"), rules)
    assert {site.path.rpartition(".")[2] for site in plan.sites} == {"qkv", "proj"} and len(
        plan.sites
    ) == 4  # one window fills the later stages


def test_a_table_of_parameters_read_by_numbers_that_are_an_input_has_no_known_layout() -> None:
    class Table(nn.Module):  # MViTv2's relative positions
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.table = nn.Parameter(torch.randn(7, 4))

        def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            return self.head((self.fc(x) + self.table[places]).mean(1))

    captured = utc.capture(Table().eval(), (torch.randn(2, 5, 4), torch.randint(7, (2, 5))))
    assert [s.path for s in utc.match(captured, "lora/all_linear", vars={"r": 2}).sites] == ["fc"]


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[:0] * 2,
        lambda x: x[:, :0].flatten(1, 2),
        lambda x: torch.cat([x[:, 3:3], x[:, :0]], 1),
        lambda x: x[:0].unflatten(0, (0, 2)).sum(1),
        lambda x: x[:, :0].repeat_interleave(2, 1),
    ],
)
def test_values_without_elements_have_no_layout(cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Emptied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = cut(self.a(x))
            return self.a(x), h + h, h

    captured = utc.capture(Emptied().eval(), torch.randn(2, 6, 4), dynamic={})
    rules = "version: 1\nname: t\nrules: [{name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}]"
    assert len(utc.match(captured, rules).sites) == 1  # one weight, however often it is called
