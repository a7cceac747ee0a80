"""The captions that a trainer writes outside of its steps, and the metrics of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_distinct import ClipScorer
from hf_distinct.gallery import Gallery


def test_captions_do_not_depend_on_the_batch_they_are_written_in(make_trainer):
    dataset = tiny.scenes(5)
    captions = [make_trainer(per_device_eval_batch_size=size).caption(dataset) for size in (1, 2, 5)]
    assert captions[0] == captions[1] == captions[2] and len(captions[0]) == 5


def test_pictures_of_any_mode_and_size_are_captioned(make_trainer, tmp_path):
    pictures = {"L": (2, 2), "RGBA": (3, 40), "CMYK": (50, 20), "P": (9, 2)}
    files = [str(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}") for mode in pictures]
    for file, (mode, size) in zip(files, pictures.items(), strict=True):
        Image.new(mode, size).save(file)
    dataset = Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())
    captions = make_trainer().caption(dataset)
    assert len(captions) == 4 and all(isinstance(caption, str) for caption in captions)


@pytest.fixture
def held_out():
    """Six pictures, stored as bytes; the fourth is truncated."""
    scenes, stored = tiny.scenes(6), []
    for picture in scenes["image"]:
        picture.save(buffer := io.BytesIO(), "PNG")
        stored.append({"bytes": buffer.getvalue(), "path": None})
    stored[3]["bytes"] = stored[3]["bytes"][:200]
    columns = {"image": stored, "captions": scenes["captions"][:], "image_id": scenes["image_id"][:]}
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


def test_a_picture_that_cannot_be_read_ends_no_training(make_trainer, held_out, caplog):
    measured = []

    def measure(captions, data):
        measured.append((captions, data["image_id"][:]))
        return {"words": 1.0}

    trainer = make_trainer(
        caption_metrics=measure, eval_dataset={"held": held_out}, eval_strategy="steps", eval_steps=1, max_steps=2
    )
    trainer.train()
    assert trainer.state.global_step == 2 and len(measured) == 2
    captions, ids = measured[-1]
    assert ids == [f"train-0-{row}" for row in (0, 1, 2, 4, 5)]
    assert "captions of 6 images: skipped 1 x image that cannot be read ('train-0-3: image stored" in caplog.text
    assert [line["eval_held_samples"] for line in trainer.state.log_history if "eval_held_samples" in line] == [5, 5]
    said = trainer.caption(held_out)
    assert said[3] is None and [*said[:3], *said[4:]] == captions == trainer.caption(held_out.select([0, 1, 2, 4, 5]))
    with pytest.raises(ValueError, match="None of 1 images can be read: 1 x image that cannot be read"):
        trainer.caption(held_out.select([3]))


def test_a_gallery_measures_the_pictures_that_can_still_be_read(make_trainer, tiny_models, held_out, tmp_path):
    """One that goes bad after the gallery was made."""
    paths = [str(tmp_path / f"{row}.png") for row in range(6)]
    for path, picture in zip(paths, tiny.scenes(6)["image"], strict=True):
        picture.save(path)
    columns = {"image": paths, "captions": held_out["captions"][:], "image_id": held_out["image_id"][:]}
    gallery = Gallery(Dataset.from_dict(columns), {"scorer": ClipScorer(str(tiny_models / "scorer"))})
    trainer = make_trainer(caption_metrics=gallery.measure, eval_dataset=gallery.dataset)
    assert "eval_samples" not in trainer.evaluate()
    Path(paths[3]).write_bytes(b"no picture any more")
    found = trainer.evaluate()
    assert found["eval_samples"] == 5
    fewer = Gallery(Dataset.from_dict(columns).select([0, 1, 2, 4, 5]), gallery.clips)
    expected = fewer.measure(trainer.caption(fewer.dataset))
    for name in ("scorer/t2i_R@1", "scorer/t2i_MRR", "scorer/CLIPScore", "BLEU-4", "mean_length"):
        assert found[f"eval_{name}"] == pytest.approx(expected[name])


def test_data_of_another_type_is_refused_at_construction_and_at_the_call(make_trainer):
    metrics = {"caption_metrics": lambda captions, _: {"n": float(len(captions))}}
    with pytest.raises(ValueError, match=r"eval_dataset\['a'\] should be a datasets.Dataset, not a list"):
        make_trainer(**metrics, eval_dataset={"a": [1]})
    trainer = make_trainer(**metrics, eval_dataset=tiny.scenes(3).remove_columns(["captions", "image_id"]))
    found = trainer.evaluate()
    assert found.pop("eval_n") == 3 and all(name.endswith(("_runtime", "_per_second")) for name in found)
    for call in (trainer.evaluate, trainer.caption):
        with pytest.raises(ValueError, match="dataset should be a datasets.Dataset, not a generator"):
            call(row for row in [])


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
