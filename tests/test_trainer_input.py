"""What the trainer refuses, and says of it: captioners, scorers and batches that do not fit."""

from __future__ import annotations

import math

import pytest
import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer


def new_trainer(tiny_models, tmp_path, change=lambda model, tokenizer: None, model=None, **settings):
    captioner, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    change(captioner, tokenizer)
    return RLCaptionTrainer(
        captioner if model is None else model,
        RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True, **settings),
        scorer=ClipScorer(str(tiny_models / "scorer")),
        train_dataset=tiny.scenes(),
        processing_class=tokenizer,
        image_processor=image_processor,
    )


def without_start(model, tokenizer):
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None


def without_end(model, tokenizer):
    tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_start, "The captioner has no decoder_start_token_id. Set model.config.decoder_start_token_id"),
        (without_end, "The captioner needs a tokenizer with an end token"),
    ],
)
def test_a_captioner_that_lacks_something_is_a_clear_error(tiny_models, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        new_trainer(tiny_models, tmp_path, change)


def test_a_model_that_is_no_captioner_is_a_clear_error(tiny_models, tmp_path):
    decoder = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    with pytest.raises(ValueError, match="must be a VisionEncoderDecoderModel, not a GPT2LMHeadModel"):
        new_trainer(tiny_models, tmp_path, model=decoder)


def test_a_scorer_that_does_not_exist_is_a_clear_error(tiny_models, tmp_path):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    with pytest.raises(ValueError, match="Scorer '.*nowhere' is neither a folder with an open_clip model nor"):
        RLCaptionTrainer(
            model, RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True), scorer=str(tmp_path / "nowhere"),
            train_dataset=tiny.scenes(), processing_class=tokenizer, image_processor=image_processor,
        )  # fmt: skip


def test_a_batch_of_one_has_nothing_to_contrast_with(make_trainer):
    with pytest.raises(ValueError, match="the batch has one image: raise per_device_train_batch_size"):
        make_trainer(per_device_train_batch_size=1)


@pytest.mark.parametrize(
    "settings", [{"pool_neighbours": 1}, {"memory_batches": 1}, {"reward": ["similarity"]}], ids=str
)
def test_a_batch_of_one_works_where_it_has(make_trainer, settings):
    trainer = make_trainer(per_device_train_batch_size=1, max_steps=2, **settings)
    trainer.train()
    assert all(math.isfinite(loss) for loss in trainer.step_losses) and len(trainer.step_losses) == 2


def test_a_batch_larger_than_the_data_is_a_clear_error(make_trainer):
    with pytest.raises(ValueError, match="12 training images do not fill one batch of 13"):
        make_trainer(per_device_train_batch_size=13)


def test_a_decoder_has_only_so_many_positions(make_trainer):
    """16: longer rollouts are an error where they are asked for, longer references are cut."""
    with pytest.raises(ValueError, match="max_new_tokens=17, but the decoder has only 16 positions"):
        make_trainer(max_new_tokens=17)
    dataset = tiny.scenes().map(lambda row: {"captions": [caption * 9 for caption in row["captions"]]})
    trainer = make_trainer(max_new_tokens=16, max_reference_length=50, dataset=dataset)
    trainer.train()
    assert tiny.a_batch(trainer)["labels"].shape[-1] == 16
