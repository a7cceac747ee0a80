"""A picture that goes bad after it was embedded, met by a worker of the loader."""

from __future__ import annotations

import logging

import pytest
import tiny
from datasets import Dataset, Features, Image, Value

from hf_distinct import ClipScorer
from hf_distinct.data.embeddings import embed_dataset


@pytest.fixture
def pictures(tiny_models, tmp_path):
    """A dataset whose pictures are files, embedded."""
    scenes = tiny.scenes(8)
    paths = [str(tmp_path / f"{row}.png") for row in range(8)]
    for path, picture in zip(paths, scenes["image"], strict=True):
        picture.save(path)
    features = Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})
    columns = {"image": paths, "captions": scenes["captions"], "image_id": scenes["image_id"]}
    return embed_dataset(Dataset.from_dict(columns, features=features), ClipScorer(str(tiny_models / "scorer")))


@pytest.mark.parametrize("workers", [0, 1])
def test_it_is_left_out_of_its_batch_and_named(make_trainer, pictures, tmp_path, workers):
    dataset, embeddings = pictures
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:200])
    trainer = make_trainer(
        dataset=dataset, embeddings=embeddings, max_steps=2, dataloader_num_workers=workers, memory_batches=2
    )
    log = logging.FileHandler(tmp_path / "log")  # a worker writes what it has to tell into it, too
    logging.getLogger("hf_distinct").addHandler(log)
    try:
        trainer.train()
    finally:
        logging.getLogger("hf_distinct").removeHandler(log)
    assert trainer.state.global_step == 2
    # Each picture remembered with its batch: three of the one, four of the other.
    assert len(trainer.appraiser.pools.memory) == 2
    assert sorted(len(batch["image_ids"]) for batch in trainer.appraiser.pools.memory) == [3, 4]
    told = (tmp_path / "log").read_text()
    for part in ("Image 'train-0-5': image '", "5.png' cannot be decoded", "left out of its batch"):
        assert part in told
