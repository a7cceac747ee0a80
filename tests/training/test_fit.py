"""What the trainer refuses, and says of it: captioners, scorers and batches that do not fit."""

from __future__ import annotations

import math

import pytest
import tiny
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer
from hf_distinct.data.embeddings import embed_dataset


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
    with pytest.raises(ValueError, match="must be a VisionEncoderDecoderModel or .*, not a GPT2LMHeadModel"):
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


def test_as_many_weights_as_rewards_of_either_kind(make_trainer):
    def own(captions, **columns):
        return [1.0] * len(captions)

    trainer = make_trainer(rewards=["similarity", own], reward_weights=[1.0, 0.5])
    assert trainer.appraiser.reward_weights == [1.0, 0.5]
    with pytest.raises(ValueError, match="2 reward_weights for 1 rewards: set one weight per reward"):
        make_trainer(rewards=["similarity"], reward_weights=[1.0, 0.5])
    with pytest.raises(ValueError, match="2 reward_weights for 1 rewards: set one weight per reward"):
        make_trainer(reward_weights=[1.0, 0.5])


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


def test_integers_single_texts_and_paths_train_as_lists_of_texts_and_pictures_do(make_trainer, tmp_path):
    scenes = tiny.scenes(8)
    paths = [str(tmp_path / f"{row}.png") for row in range(8)]
    for path, picture in zip(paths, scenes["image"], strict=True):
        picture.save(path)
    captions, ids = [row[0] for row in scenes["captions"]], list(range(8))
    given = Dataset.from_dict({"image": paths, "captions": captions, "image_id": ids}).with_format("torch")
    listed = {"image": scenes["image"][:], "captions": [[text] for text in captions], "image_id": list(map(str, ids))}
    losses = []
    for dataset in (given, Dataset.from_dict(listed)):
        trainer = make_trainer(dataset=dataset, max_steps=2)
        trainer.train()
        losses.append(trainer.step_losses)
        assert tiny.a_batch(trainer)["captions"] == [[text] for text in captions[:4]]
    assert losses[0] == losses[1] and all(map(math.isfinite, losses[0]))


def test_what_is_no_data_set_is_a_clear_error(make_trainer):
    with pytest.raises(ValueError, match="train_dataset should be a datasets.Dataset, not a list"):
        make_trainer(dataset=list(tiny.scenes(4)))


def test_neighbours_that_do_not_fit_are_a_clear_error(make_trainer, caplog):
    mined = tiny.scenes(6).add_column("neighbours", [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])
    with pytest.raises(ValueError, match="pool_neighbours=1, but its column 'neighbours' has 2 in each row"):
        make_trainer(dataset=mined, pool_neighbours=1)
    with pytest.raises(ValueError, match="row 3 has the neighbour 4, but there are 4 rows"):
        make_trainer(dataset=mined.select(range(4)), pool_neighbours=2)
    assert not caplog.records
    make_trainer(dataset=mined)
    assert "'neighbours' of train_dataset is not used. To use it, set pool_neighbours" in caplog.text
    trainer = make_trainer(dataset=mined, pool_neighbours=2, max_steps=1)
    trainer.train()
    assert tiny.a_batch(trainer)["neighbour_mask"].tolist() == [[True, True]] * 4


def test_embeddings_of_other_captions_are_a_clear_error(make_trainer, tiny_models):
    dataset, embeddings = embed_dataset(tiny.scenes(6), ClipScorer(str(tiny_models / "scorer")))
    with pytest.raises(ValueError, match="The embeddings belong to 6 images, but train_dataset has 5 rows"):
        make_trainer(dataset=dataset.select(range(5)), embeddings=embeddings)
    shorter = dataset.map(lambda row: {"captions": row["captions"][:-1]})
    with pytest.raises(ValueError, match="Row 0 of train_dataset has 4 captions, but 5 were embedded"):
        make_trainer(dataset=shorter, embeddings=embeddings)


class DrawingTrainer(tiny.RecordingTrainer):
    """Keeps what was drawn of each picture in each step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        drawn = zip(inputs["columns"]["image_id"], inputs["captions"], strict=True)
        self.drawn = [*getattr(self, "drawn", []), sorted(drawn)]
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_workers_that_live_on_draw_what_is_drawn_without_workers(make_trainer):
    drawn = []
    for workers in ({}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}):
        trainer = make_trainer(dataset=tiny.scenes(4), max_steps=3, kind=DrawingTrainer, **workers)
        trainer.train()  # three epochs of one batch
        drawn.append(trainer.drawn)
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1] != drawn[0][2]


def test_rollouts_that_may_be_longer_than_the_scorer_reads_are_warned_of(make_trainer, caplog):
    make_trainer(max_new_tokens=14)
    assert "get the same reward" not in caplog.text
    make_trainer(max_new_tokens=15)
    assert "max_new_tokens=15 tokens, but the scorer" in caplog.text and "reads only 14" in caplog.text
