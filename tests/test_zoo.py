"""`make zoo`: shrunken architectures, example inputs, the worker pool, resuming, the page."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from support.zoo_toys import behave
from typer.testing import CliRunner, Result

from tools.zoo.__main__ import app
from tools.zoo.page import page
from tools.zoo.pool import Limits, run_tasks
from tools.zoo.rows import Row, RowFile, Task, smallest_of_each_class
from tools.zoo.weights import shake, unwritten
from tools.zoo.work import work
from utcompile.errors import UtcError

# --- rows ---------------------------------------------------------------------------------------------------------


def test_the_last_row_of_a_model_counts_and_a_half_line_is_dropped(tmp_path):
    file = RowFile(tmp_path / "deep" / "rows.jsonl")
    first = Row("timm", "a", "failed", reason="x", pinned=("7 at net.py:3",))
    file.append(first)
    file.append(replace(first, status="ok"))
    with file.path.open("a") as out:
        out.write('{"library": "timm", "na')
    assert file.read() == {("timm", "a"): replace(first, status="ok")}
    file.mend()
    file.append(Row("timm", "b", "ok"))
    assert [row.name for row in file.read().values()] == ["a", "b"]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"library": "timm"}\n')
    with pytest.raises(UtcError, match=r"rows.jsonl:1: this is no row of the zoo"):
        RowFile(path).read()


def test_the_smallest_of_each_class():
    rows = [
        Row("timm", "big", "ok", cls="A", parameters=9),
        Row("timm", "small", "failed", cls="A", parameters=4),
        Row("timm", "other", "built", cls="B", parameters=7),
        Row("timm", "gone", "not built"),
        Row("torchvision", "same name of a class", "ok", cls="A", parameters=1),
    ]
    assert [r.name for r in smallest_of_each_class(rows)] == ["small", "other", "same name of a class"]


# --- the pool -----------------------------------------------------------------------------------------------------


def test_what_goes_wrong_in_a_worker_becomes_a_row():
    names = ["fine", "crashes", "raises", "hangs", "also fine"]
    limits = Limits(seconds=4)
    rows = {r.name: r for r in run_tasks([Task("toys", n) for n in names], behave, 2, limits)}
    assert {n: r.status for n, r in rows.items()} == {
        "fine": "ok", "crashes": "failed", "raises": "failed", "hangs": "timed out", "also fine": "ok",
    }  # fmt: skip
    assert rows["crashes"].reason == "the worker process died with exit code 3, while it was captured"
    assert (rows["crashes"].cls, rows["crashes"].parameters) == ("Toy", 3)  # the draft's
    assert rows["raises"].reason == "RuntimeError: no luck"
    assert rows["hangs"].reason == "it took more than 4 s, while it was captured"
    assert not multiprocessing.active_children()


def test_a_flood_of_memory_is_stopped():
    limits = Limits(seconds=30, memory=0.5e9)  # a fresh worker without torch takes a tenth of it
    (row,) = run_tasks([Task("toys", "floods")], behave, 1, limits)
    assert row.status == "failed"
    assert "GB of memory" in row.reason


def test_a_worker_is_replaced_after_its_models():
    rows = list(run_tasks([Task("toys", f"{i}") for i in range(3)], behave, 1, Limits(models=2)))
    assert [r.status for r in rows] == ["ok"] * 3


# --- models -------------------------------------------------------------------------------------------------------


def test_unwritten_weights_cost_no_memory():
    before = psutil.Process().memory_info().rss
    with unwritten():
        layer = torch.nn.Linear(30_000, 30_000)
        buffer = torch.linspace(0, 1, 4)
        torch.nn.init.trunc_normal_(layer.weight, std=0.02)
        table = torch.zeros(20_000, 20_000)
    assert psutil.Process().memory_info().rss - before < 200e6
    assert layer.weight.shape == (30_000, 30_000)
    assert table.shape == (20_000, 20_000)
    assert buffer.tolist()[-1] == 1  # small tensors are what they should be


def test_shaking_moves_what_is_constant_and_only_that():
    model = torch.nn.BatchNorm2d(8)
    model.other = torch.nn.Linear(3, 3)
    before = model.other.weight.clone()
    shake(model)
    assert model.weight.unique().numel() == 8
    assert torch.equal(model.other.weight, before)


@pytest.mark.parametrize(
    "library, name, cls, verified",
    [
        ("timm", "test_vit", "VisionTransformer", "values"),
        ("torchvision", "squeezenet1_1", "SqueezeNet", "values"),
        ("timm", "vit_giant_patch14_224", "VisionTransformer", "shapes"),
    ],
)
def test_models_of_timm_and_torchvision(library, name, cls, verified):
    drafts, before = [], psutil.Process().memory_info().rss
    row = work(Task(library, name, "full" if verified == "values" else "shapes"), drafts.append)
    assert (row.status, row.cls, row.reason) == ("ok", cls, "")
    assert row.verified.startswith(verified)
    assert row.nodes > 20
    assert [d.status for d in drafts] == ["built"]
    # the weights of a ViT-g alone are 4 GB: where only shapes are compared they are never made
    assert psutil.Process().memory_info().rss - before < 1.5e9


def test_what_a_library_refuses_is_not_built():
    row = work(Task("timm", "no_such_model"), lambda draft: None)
    assert row.status == "not built"
    assert "no_such_model" in row.reason


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, inputs",
    [
        ("bert", {"input_ids", "attention_mask"}),
        ("qwen3_next", {"input_ids", "attention_mask"}),
        ("t5", {"input_ids", "attention_mask", "decoder_input_ids"}),
        ("vit", {"pixel_values"}),
        ("llava", {"input_ids", "attention_mask", "pixel_values"}),
        ("wav2vec2", {"input_values", "attention_mask"}),
    ],
)
def test_an_architecture_is_built_small_and_runs_on_its_own_kinds_of_input(name, inputs):
    import transformers

    from tools.zoo.hugging_face import specimen

    made = specimen(Task("transformers", name, "full"))
    assert isinstance(made.model, transformers.PreTrainedModel)
    assert sum(p.numel() for p in made.model.parameters()) < 30e6
    assert made.inputs.keys() == inputs
    with torch.no_grad():
        made.model(**made.inputs)


def test_a_shrunken_configuration_keeps_one_layer_of_every_kind():
    import transformers

    from tools.zoo.shrink import RUNGS, shrunk

    default = transformers.Qwen3NextConfig()
    small = shrunk(default, RUNGS[0])
    assert type(small) is type(default)
    assert set(small.layer_types) == set(default.layer_types)
    assert small.num_hidden_layers == len(small.layer_types) < 8
    assert small.hidden_size < default.hidden_size
    assert default.num_hidden_layers == 48


def test_special_tokens_stay_inside_the_small_vocabulary_and_apart():
    import transformers

    from tools.zoo.shrink import RUNGS, shrunk

    small = shrunk(transformers.Qwen2VLConfig(), RUNGS[0])
    special = {small.image_token_id, small.video_token_id, small.vision_start_token_id}
    assert len(special) == 3
    assert max(special) < small.text_config.vocab_size


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def passed(*arguments: object) -> Result:
    """Run it, and see that it worked."""
    result = command(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


@pytest.fixture
def worked(monkeypatch):
    """The command with the toys' job in this process; lists what was done."""
    done = []

    def run(tasks, work, jobs, limits):
        for task in tasks:
            done.append((task.name, task.verify))
            yield Row(task.library, task.name, "ok", cls="Toy", parameters=len(task.name), verify=task.verify)

    monkeypatch.setattr("tools.zoo.pool.run_tasks", run)
    return done


RESNETS = ("--library", "timm", "--only", "test_resnet", "--only", "test_vit*")


def test_every_model_then_the_smallest_of_each_class_and_nothing_twice(worked, tmp_path):
    rows = tmp_path / "rows.jsonl"
    passed(*RESNETS, "-o", rows)
    names = [name for name, verify in worked if verify == "shapes"]
    assert {"test_resnet", "test_vit"} <= set(names)
    assert [w for w in worked if w[1] == "full"] == [("test_vit", "full")]
    worked.clear()
    passed(*RESNETS, "-o", rows)
    assert worked == []
    passed(*RESNETS, "-o", rows, "--fresh")
    assert len(worked) == len(names) + 1


def test_an_interrupted_run_goes_on_where_it_stopped(worked, tmp_path):
    file = RowFile(tmp_path / "rows.jsonl")
    file.append(Row("timm", "test_resnet", "failed", verify="shapes", reason="x"))
    only = ("--library", "timm", "--only", "test_resnet*", "--verify", "shapes", "-o", file.path)
    passed(*only)
    assert worked == []
    passed(*only, "--retry", "failed")
    assert worked == [("test_resnet", "shapes")]


def test_the_rows_as_json(worked, tmp_path):
    found = json.loads(
        passed("--library", "timm", "--only", "test_resnet", "-o", tmp_path / "rows.jsonl", "--json").stdout
    )
    assert [(r["name"], r["status"]) for r in found] == [("test_resnet", "ok")]


def test_a_wrong_word_is_refused(tmp_path):
    for option in ("--library", "--verify", "--retry"):
        result = command(option, "nonsense", "-o", tmp_path / "rows.jsonl")
        assert result.exit_code == 2
        assert "nonsense" in result.output


@pytest.mark.full  # each part has a test of its own above
def test_one_real_model_through_everything(tmp_path):
    rows, text = tmp_path / "rows.jsonl", tmp_path / "zoo.md"
    only = ("--library", "timm", "--only", "test_resnet", "--verify", "full")
    assert "timm: 1 models: 1 ok" in passed(*only, "-o", rows, "--page", text).stdout
    assert json.loads(rows.read_text())["verified"].startswith("values")
    assert "| ResNet | 1 |" in text.read_text()


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_has_a_row_a_class_and_every_reason():
    good = Row("timm", "a1", "ok", cls="A", parameters=2_000_000, nodes=50, capture_seconds=1, verified="shapes")
    text = page(
        [
            good,
            replace(good, name="a2", nodes=1500, capture_seconds=4.26, verified="values at batch 2"),
            replace(good, name="b", cls="B", status="opaque", reason="heads.0: torch.nonzero | net.py:7"),
            Row("timm", "c", "not built", reason="needs a network"),
            replace(good, name="d", cls="D", status="built"),
        ]
    )
    assert "| timm | 4 | 2 | 2 | 1 | 0 | 0 | 1 | 100.0 % | 66.7 % | 1 |" in text
    assert "| A | 2 | 2 M | 50–1,500 | 1.0–4.3 | 1 |  |  | ok |" in text  # noqa: RUF001
    assert "| b | heads.0: torch.nonzero \\| net.py:7 |" in text
    assert "| c | needs a network |" in text
    assert "| D |" not in text and "1 more of timm were built and not captured" in text
    assert "a2 4.3 s (1,500 nodes" in text


def test_reports_with_opaque_modules_make_opaque_rows(monkeypatch):
    report = SimpleNamespace(opaque=("head: nonzero",), pinned=("7",), unreachable=("w",), verified="shapes")
    captured = SimpleNamespace(report=report, graph=SimpleNamespace(nodes=[1, 2]), guards=())
    monkeypatch.setattr("utcompile.capture", lambda *args, **kwargs: captured)
    row = work(Task("timm", "test_vit"), lambda draft: None)
    assert (row.status, row.opaque, row.pinned, row.unreachable) == ("opaque", ("head: nonzero",), ("7",), 1)
