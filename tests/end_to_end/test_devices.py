"""What a GPU refuses, or waits for: found on a pretended one, so that it shows on a machine without."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny
import torch
from pretended_gpu import GPU, OnGpu, PretendedGpu

from hf_distinct import Captioner, ClipScorer, RLCaptionConfig
from hf_distinct.evaluation.fluency import LanguageModel
from hf_distinct.gallery import Gallery

pytestmark = [
    pytest.mark.both_ends,  # it hangs on how transformers writes
    pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter"),  # it copies all the same
]
SETTINGS = {
    "sample": {"memory_batches": 2, "pool_neighbours": 2, "reward": ["contrastive", "cider"], "kl_weight": 0.1},
    "beam": {"rollouts": "beam", "num_rollouts": 1, "num_beams": 3, "no_repeat_ngram_size": 3, "baseline": "greedy"},
}
# Where a step by default settings waits, but for writing captions, which waits for each token.
WAITS = {
    "generate": {
        "families.py generate",
        "generation/labels.py are_ends",
        "generation/labels.py decode",
        "fast/finished_rows.py __init__",
    },
    "score": {
        "generation/policy.py score",
        "captioner.py token_logits",
        "families.py logits",
        "fast/packing.py __init__",
    },
    "step": {
        "training/resumable.py listcomp",
        "generation/labels.py are_ends",
        "generation/labels.py rollout_figures",
    },
}


class OnPretended(RLCaptionConfig):
    """The settings of a training on the pretended GPU."""

    @property
    def device(self):
        return super().device and GPU


@pytest.fixture
def on_gpu(monkeypatch, make_trainer):
    """Makes trainers as `make_trainer` does, of a captioner on the pretended GPU."""
    monkeypatch.setattr(tiny, "RLCaptionConfig", OnPretended)

    def make(*args, **settings):
        trainer = make_trainer(*args, optim="adamw_torch", **settings)  # the fused one does not know the device
        trainer.model.to(GPU)
        trainer.model.tie_weights()
        trainer.accelerator.state.device = GPU
        return trainer

    return make


def phases(trainer, gpu):
    """Let the pretended GPU know which phase of the step it is in."""
    phase = trainer.meter.phase

    @contextmanager
    def named(name):
        before, gpu.phase = gpu.phase, name
        with phase(name):
            yield
        gpu.phase = before

    trainer.meter.phase = named


@pytest.mark.parametrize("how", SETTINGS)
def test_a_step_mixes_no_devices_and_gives_the_loss_of_the_cpu(make_trainer, on_gpu, tmp_path, monkeypatch, how):
    with PretendedGpu():
        trainer = on_gpu(tmp_path / "gpu", **SETTINGS[how])
        inputs = tiny.a_batch(trainer)
        torch.manual_seed(5)
        losses = [trainer.compute_loss(trainer.model, inputs) for _ in range(2)]
        losses[1].backward()
        assert isinstance(losses[1], OnGpu) and isinstance(trainer.model.encoder.layernorm.weight.grad, OnGpu)
    monkeypatch.setattr(tiny, "RLCaptionConfig", RLCaptionConfig)
    trainer = make_trainer(tmp_path / "cpu", **SETTINGS[how])
    inputs = tiny.a_batch(trainer)
    torch.manual_seed(5)
    expected = [trainer.compute_loss(trainer.model, inputs) for _ in range(2)]
    assert [loss.item() for loss in losses] == pytest.approx([loss.item() for loss in expected], abs=1e-5)


def test_where_a_step_waits_for_the_device(on_gpu):
    with PretendedGpu() as gpu:
        trainer = on_gpu(log_completions=True)
        inputs = tiny.a_batch(trainer)
        phases(trainer, gpu)
        gpu.waits.clear()
        with trainer.meter.phase("step"):
            loss = trainer.compute_loss(trainer.model, inputs)
        with trainer.meter.phase("backward"):
            loss.backward()
        found = {phase: set(lines) for phase, lines in gpu.waits.items()}
        assert len(trainer.step_log.completions()) == 8
    found["generate"] -= {"fast/finished_rows.py choose"}
    assert found == WAITS
    assert "training/step_log.py completions" in gpu.waits[""]  # the log line waits instead


def test_a_training_is_resumed_exactly(on_gpu, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "memory_batches": 2, "logging_steps": 3}
    with PretendedGpu():
        whole = on_gpu(tmp_path / "whole", max_steps=2, **settings)
        whole.train()
        on_gpu(tmp_path / "parts", max_steps=1, **settings).train()
        resumed = on_gpu(tmp_path / "parts", max_steps=2, **settings)
        resumed.train(resume_from_checkpoint=True)
    assert resumed.step_losses == whole.step_losses[1:]
    steps = [state["step"] for state in resumed.discriminator.optimizer.state.values()]
    assert all(type(step) is torch.Tensor and step == 2 for step in steps)  # on the CPU, where Adam wants them


def test_captioning_and_measuring_mix_no_devices(tiny_models, tmp_path):
    pictures, scenes = [row["image"] for row in tiny.scenes(3)], tiny.scenes(12)
    captions = [row["captions"][0] for row in scenes]
    language_model = str(tiny.language_model(tmp_path / "language_model"))

    def results(device):
        captioner = Captioner(tiny_models / "captioner", str(tiny_models / "scorer"), device=device)
        said = captioner(pictures, num_samples=3), captioner(pictures, num_samples=2, guidance=1.5)
        captioner.scorer = None
        gallery = Gallery(scenes, {"clip": ClipScorer(str(tiny_models / "scorer"), device=device)}, num_neighbours=3)
        surprise, _ = LanguageModel(language_model, device).surprise(captions)
        return said, captioner(pictures), gallery.measure(captions), gallery.ranks(captions, "clip"), sum(surprise)

    with PretendedGpu():
        found = results(GPU)
    expected = results("cpu")
    assert found[:2] == expected[:2] and found[3] == expected[3]
    assert found[2] == pytest.approx(expected[2], abs=1e-5) and found[4] == pytest.approx(expected[4], rel=1e-5)


def test_tensors_on_two_devices_are_refused():
    refused = r"aten::add.Tensor of tensors on two devices: {'GPU': \[\(3,\)\], 'CPU': \[\(3,\)\]}"
    with PretendedGpu(), pytest.raises(RuntimeError, match=refused):
        torch.ones(3, device=GPU) + torch.ones(3)
