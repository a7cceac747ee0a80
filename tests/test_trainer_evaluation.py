"""The captions that a trainer writes outside of its steps, and the metrics of them."""

from __future__ import annotations

import pytest
import tiny
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image


def test_captions_do_not_depend_on_the_batch_they_are_written_in(make_trainer):
    dataset = tiny.scenes(5)
    captions = [make_trainer(per_device_eval_batch_size=size).caption(dataset) for size in (1, 2, 5)]
    assert captions[0] == captions[1] == captions[2] and len(captions[0]) == 5


def test_pictures_of_any_mode_and_size_are_captioned(make_trainer, tmp_path):
    pictures = {"L": (1, 1), "RGBA": (3, 40), "CMYK": (50, 20), "P": (9, 1)}
    files = [str(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}") for mode in pictures]
    for file, (mode, size) in zip(files, pictures.items(), strict=True):
        Image.new(mode, size).save(file)
    dataset = Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())
    assert len(make_trainer().caption(dataset)) == 4


def test_evaluate_gives_the_metrics_of_the_captions(make_trainer):
    dataset = tiny.scenes(5)

    def measure(captions, data):
        assert len(captions) == len(data)
        return {"words": sum(len(caption.split()) for caption in captions) / len(captions)}

    trainer = make_trainer(caption_metrics=measure, eval_dataset={"a": dataset, "b": dataset.select([0])})
    captions = trainer.caption(dataset)
    words = [len(caption.split()) for caption in captions]
    found = trainer.evaluate()
    assert (found["eval_a_words"], found["eval_b_words"]) == (sum(words) / 5, words[0])
    assert trainer.evaluate(dataset, metric_key_prefix="test")["test_words"] == sum(words) / 5
    with pytest.raises(ValueError, match="needs an eval_dataset and caption_metrics"):
        make_trainer().evaluate()


def test_evaluation_within_training_does_not_change_it(make_trainer, tmp_path):
    settings = {"max_steps": 3, "caption_metrics": lambda captions, _: {"n": len(captions)}}
    without = make_trainer(tmp_path / "a", **settings)
    without.train()
    within = make_trainer(tmp_path / "b", **settings, eval_dataset=tiny.scenes(3), eval_strategy="steps", eval_steps=1)
    within.train()
    assert within.step_losses == without.step_losses
    assert [line["eval_n"] for line in within.state.log_history if "eval_n" in line] == [3, 3, 3]
