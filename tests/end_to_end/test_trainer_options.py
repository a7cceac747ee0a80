"""What every Trainer offers, with the step of this one: checkpointed layers, clipping, half precision, adapters."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_distinct import RLCaptionConfig

# The same captions whatever the rounding; SGD, which shows the length of a gradient.
SETTINGS = {
    "rollouts": "beam", "num_beams": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2,
    "wtf_policy": "constant", "kl_weight": 0.1, "memory_batches": 1,
}  # fmt: skip
# Layers of GPT-2, which keep their weight the other way round, and of the ViT, by its names in transformers 4 and 5.
ADAPTED = ["c_attn", "c_proj", "query", "q_proj"]


def layer_calls(trainer, part):
    """How often a part begins to run with gradient: a second run ends as soon as it has what it needs."""
    calls = []
    part.register_forward_pre_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)
    trainer.train()
    return len(calls)


def test_checkpointed_layers_run_again_and_the_training_is_the_same(make_trainer, tmp_path):
    """Up to rounding: those that are not checkpointed compute no padding. The tiny captioner's dropout is on, so that
    layers in train mode would show.
    """
    plain = make_trainer(tmp_path / "plain", **SETTINGS)
    saving = make_trainer(tmp_path / "saving", **SETTINGS, gradient_checkpointing=True)
    calls = [layer_calls(trainer, trainer.model.decoder.transformer.h[0].mlp) for trainer in (plain, saving)]
    assert calls == [2, 4]
    assert_close(saving.step_losses, plain.step_losses, rtol=1e-5, atol=0)
    assert len(set(plain.step_losses)) == 2
    assert_close(dict(saving.model.named_parameters()), dict(plain.model.named_parameters()), rtol=1e-4, atol=1e-6)
    assert not any(module.training for module in saving.model.modules())


def test_the_encoder_is_checkpointed_too(make_trainer):
    trainer = make_trainer(**{**SETTINGS, "max_steps": 1}, gradient_checkpointing=True)
    layer = next(m for m in trainer.model.encoder.modules() if isinstance(m, GradientCheckpointingLayer))
    assert layer_calls(trainer, next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))) == 2


@pytest.mark.both_ends
def test_checkpointed_layers_run_again_by_their_new_name(make_trainer):
    """Which transformers 5 gave the setting, with the old one as an alias."""
    if not hasattr(RLCaptionConfig(), "activation_checkpointing"):
        pytest.skip("transformers 4 has the old name alone")
    trainer = make_trainer(**SETTINGS, activation_checkpointing=True)
    assert trainer.args.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert layer_calls(trainer, trainer.model.decoder.transformer.h[0].mlp) == 4


def test_a_clipped_step_has_the_length_that_was_asked_for(make_trainer):
    trainer = make_trainer(**{**SETTINGS, "max_steps": 1, "max_grad_norm": 0.01})
    before = tiny.weights(trainer.model)
    trainer.train()
    moved = torch.stack([(p - before[name]).norm() for name, p in trainer.model.named_parameters()]).norm()
    assert trainer.state.log_history[0]["grad_norm"] > 0.1
    assert float(moved) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_half_precision_takes_nearly_the_step_of_full_precision(make_trainer, tmp_path):
    settings = {**SETTINGS, "max_steps": 1}
    full = make_trainer(tmp_path / "full", **settings)
    half = make_trainer(tmp_path / "half", **settings, bf16=True)
    before = torch.nn.utils.parameters_to_vector(full.model.parameters()).detach()
    steps = []
    for trainer in (full, half):
        trainer.train()
        after = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
        assert after.dtype == torch.float32
        steps.append(after - before)
    assert half.step_losses == pytest.approx(full.step_losses, rel=0.02)
    assert half.step_losses != full.step_losses
    assert float(torch.cosine_similarity(*steps, dim=0)) > 0.99
    assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.02)


def with_adapters(model):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, lora_alpha=6, lora_dropout=0.1, target_modules=ADAPTED))


def test_the_gradient_of_an_adapter_is_that_of_its_weight(make_trainer, tmp_path):
    """W + s B A with B = 0 at the start: the same loss, and dL/dB = s dL/dW A', dL/dA = 0."""
    plain = make_trainer(tmp_path / "plain", **SETTINGS)
    adapted = make_trainer(tmp_path / "adapted", **SETTINGS, adapt=with_adapters)
    losses = []
    for trainer in (plain, adapted):
        loss = trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
        loss.backward()
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    compared = 0
    for name, module in adapted.model.get_base_model().named_modules():
        if not hasattr(module, "lora_A"):
            continue
        weight = plain.model.get_submodule(name).weight.grad
        weight = weight.T if type(module.base_layer).__name__ == "Conv1D" else weight
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert_close(b.grad, 3.0 * weight @ a.T, atol=1e-6, rtol=1e-4)
        assert a.grad.abs().max() == 0 and module.base_layer.weight.grad is None
        compared += int(b.grad.abs().max() > 1e-6)
    assert compared >= 4


def test_trained_adapters_are_saved_alone_and_taken_up_again(make_trainer, tmp_path):
    trainer = make_trainer(**{**SETTINGS, "learning_rate": 1.0}, adapt=with_adapters)
    before = trainer.caption(tiny.scenes())
    query = next(m for m in trainer.model.get_base_model().encoder.modules() if hasattr(m, "lora_A"))
    base = tiny.weights(query.base_layer)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    captions = trainer.caption(tiny.scenes())
    assert captions != before
    assert tiny.moved(base, query.base_layer) == set()
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    again = make_trainer(
        tmp_path / "again", adapt=lambda model: PeftModel.from_pretrained(model, str(tmp_path / "adapters"))
    )
    assert again.caption(tiny.scenes()) == captions
    merged = make_trainer(
        tmp_path / "merged",
        adapt=lambda model: PeftModel.from_pretrained(model, str(tmp_path / "adapters")).merge_and_unload(),
    )
    assert merged.caption(tiny.scenes()) == captions
