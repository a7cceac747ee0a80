"""Under --bf16 the encoder multiplies in bfloat16, as the decoder does, wherever the trainer calls it."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import Seq2SeqTrainingArguments

from hf_distinct.gallery import Gallery
from hf_distinct.training.teacher_forcing import TeacherForcing

pytestmark = pytest.mark.both_ends  # transformers 4.57 opens an autocast of its own on CPUs, 5 does not


@pytest.fixture(autouse=True)
def whole_precision_for_others(monkeypatch):
    """TrainingArguments of transformers 4.57 leave the precision in the environment, for those that say nothing."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def products(part):
    """The types of what its linear layers give, from now on."""
    types = set()
    for module in part.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    return types


@pytest.mark.parametrize("half", [True, False])
def test_encoder_and_decoder_multiply_in_the_precision_that_was_asked_for(make_trainer, half):
    trainer = make_trainer(bf16=half, kl_weight=0.1, caption_metrics=lambda captions, dataset: {"n": len(captions)})
    expected = {torch.bfloat16} if half else {torch.float32}
    inputs = tiny.a_batch(trainer)
    model = trainer.model.eval()
    encoder, decoder = products(model.encoder), products(model.decoder)

    def ask(call):
        encoder.clear(), decoder.clear()
        return call()

    policy = trainer.policy
    hidden = ask(lambda: policy.encode(model, inputs["pixel_values"]))
    assert encoder == expected and hidden.dtype == torch.float32
    rollouts = ask(lambda: policy.roll_out(model, hidden, len(hidden), greedy=False))
    assert decoder == expected
    ask(lambda: trainer.evaluate(tiny.scenes(4)))  # before and after Accelerate has wrapped the model
    assert encoder == decoder == expected
    ask(trainer.train)
    assert encoder == decoder == expected
    ask(lambda: trainer.evaluate(tiny.scenes(4)))
    assert encoder == decoder == expected
    reference = products(trainer.reference_model)
    scores = policy.score(model, hidden, rollouts.labels, rollouts.labels[:0])
    policy.divergence(scores, trainer.reference_model, inputs["pixel_values"])
    assert reference == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_warm_up_too(tiny_models, tmp_path):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    encoder, decoder = products(model.encoder), products(model.decoder)
    trainer = TeacherForcing(
        model,
        Seq2SeqTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, bf16=True, use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, report_to=[],
        ),
        train_dataset=tiny.scenes(4),
        gallery=Gallery(tiny.scenes(4), {}),
        processing_class=tokenizer,
        image_processor=image_processor,
        max_length=tiny.MAX_LENGTH,
    )  # fmt: skip
    for types in (encoder, decoder):
        types.clear()  # of the look before the training
    trainer.train()
    assert encoder == decoder == {torch.bfloat16}
