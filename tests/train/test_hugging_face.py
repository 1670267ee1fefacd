"""Hugging Face's Trainer with tuned models: optional labels, checkpoints of tuners alone, exact resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import utcompile as utc
from utcompile.train import trainer_of_tuners

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]  # of transformers, about its own names
PARTS = ["**.query", "**.value", "bert.encoder.layer.*.intermediate", "bert.encoder.layer.*.output.dense"]


@pytest.fixture(autouse=True)
def no_accelerator() -> Any:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForSequenceClassification(config).eval()


IDS = torch.randint(1, 50, (16, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": i, "attention_mask": torch.ones(8).long(), "labels": int(i[0] > 25)} for i in IDS]


def tuned_of(bert: Any, within: list[str] | None) -> Any:
    torch.manual_seed(0)
    inputs = {"input_ids": IDS[:2], "attention_mask": torch.ones(2, 8).long()}
    if within is None:  # one graph: the loss is in it
        return utc.compile(bert, "lora/all_linear", {**inputs, "labels": torch.tensor([0, 1])}, vars={"r": 2})
    train = ["module:classifier"]
    return utc.compile(bert, "lora/all_linear", inputs, vars={"r": 2}, within=within, train=train)


def trainer(model: Any, out: Path, **settings: Any) -> Any:
    given = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "logging_steps": 1, "learning_rate": 1e-2}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4}
    arguments = transformers.TrainingArguments(str(out), **given, **quiet, **settings)
    return trainer_of_tuners()(model, arguments, train_dataset=DATA)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("within", [PARTS, None], ids=["parts", "one graph"])
def test_a_trainer_saves_tuners_alone_and_resumes_exactly(bert: Any, within: list[str] | None, tmp_path: Path) -> None:
    tuned = tuned_of(bert, within)
    whole = trainer(tuned, tmp_path / "whole")
    whole.train()
    files = {p.name: p.stat().st_size for p in (tmp_path / "whole/checkpoint-3").iterdir()}
    assert {"manifest.json", "tuners.safetensors", "trainer_state.json", "optimizer.pt"} <= files.keys()
    assert not any(name.startswith(("model", "pytorch_model")) for name in files)
    resumed = trainer(tuned_of(bert, within), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert losses(resumed) == losses(whole)
    again = tuned_of(bert, within)
    utc.load_tuners(again, tmp_path / "whole/checkpoint-6")
    inputs = DATA[0] | {"input_ids": IDS[:1], "attention_mask": torch.ones(1, 8).long(), "labels": torch.tensor([1])}
    assert torch.equal(again.eval()(**inputs).logits, tuned.eval()(**inputs).logits)


@pytest.mark.parametrize("within", [PARTS, None], ids=["parts", "one graph"])
def test_activation_checkpointing_gives_the_same_losses(bert: Any, within: list[str] | None, tmp_path: Path) -> None:
    plain = trainer(tuned_of(bert, within), tmp_path / "plain")
    plain.train()
    tuned = tuned_of(bert, within)
    again = trainer(tuned, tmp_path / "again", gradient_checkpointing=True)
    again.train()
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)
    if within is None:
        assert tuned.memory.again, "blocks run again"


def test_labels_are_optional_and_the_class_is_saved_as_itself(bert: Any, tmp_path: Path) -> None:
    tuned = tuned_of(bert, PARTS)
    done = trainer(tuned, tmp_path / "run")
    done.train()
    found = done.predict([{k: v for k, v in row.items() if k != "labels"} for row in DATA]).predictions
    folded, report = utc.fold(tuned)
    assert report.is_original
    folded.save_pretrained(tmp_path / "folded")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "folded")
    logits = again(input_ids=IDS).logits.detach()
    torch.testing.assert_close(logits, torch.as_tensor(found), rtol=1e-4, atol=1e-5)  # rounding of folded weights
