"""Neighbours in training: embeddings from a mapped cache, and batches that are built from neighbours."""

import json
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from hf_distinct import ClipScorer, embed_dataset, emoji_scenes, mine_neighbours

GROUPS = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def in_groups():
    """Twelve pictures; the neighbours of each are the other three of its group."""
    neighbours = [[]] * 12
    for group in GROUPS:
        for row in group:
            neighbours[row] = [each for each in group if each != row]
    return tiny.scenes(12).add_column("neighbours", neighbours)


class Watching(tiny.RecordingTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), inputs["columns"]["image_id"]]
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.fixture
def watched(make_trainer):
    return partial(make_trainer, kind=Watching)


def test_a_batch_brings_its_embeddings_from_the_mapped_cache(make_trainer, tiny_models, tmp_path):
    scorer = ClipScorer(str(tiny_models / "scorer"))
    dataset, embeddings = embed_dataset(tiny.scenes(), scorer, tmp_path / "cache")
    dataset = mine_neighbours(dataset, embeddings, 2)
    assert embeddings.image_embeds.dtype == torch.float16
    trainer = make_trainer(dataset=dataset, embeddings=embeddings, pool_neighbours=2, max_steps=2)
    batch = tiny.a_batch(trainer)
    fresh, in_memory = embed_dataset(tiny.scenes(), scorer)
    rows = torch.tensor(fresh["row"][:4])
    assert batch["image_embeds"].dtype == torch.float32
    torch.testing.assert_close(batch["image_embeds"].cpu(), in_memory.image_embeds[rows], atol=1e-3, rtol=0)
    neighbours = torch.tensor(dataset["neighbours"][:4])
    torch.testing.assert_close(batch["neighbour_embeds"].cpu(), in_memory.image_embeds[neighbours], atol=1e-3, rtol=0)
    trainer.train()
    plain = make_trainer(output=tmp_path / "plain", pool_neighbours=2, max_steps=2)
    plain.train()
    assert trainer.step_losses == pytest.approx(plain.step_losses, abs=2e-2)


def test_batches_are_built_from_mutual_neighbours(watched):
    dataset = in_groups()
    groups = [{dataset[row]["image_id"] for row in group} for group in GROUPS]
    trainer = watched(dataset=dataset, hard_batches=True, max_steps=6)
    trainer.train()
    assert all(set(seen) in groups for seen in trainer.seen)
    first, second = trainer.seen[:3], trainer.seen[3:]
    assert sorted(map(sorted, first)) == sorted(map(sorted, second)) == sorted(map(sorted, groups))
    assert first != second  # another epoch, another order


def test_resumed_within_an_epoch_the_batches_are_the_same(watched, tmp_path):
    whole = watched(dataset=in_groups(), hard_batches=True, max_steps=6, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = watched(output=tmp_path / "again", dataset=in_groups(), hard_batches=True, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.seen == whole.seen[4:]
    assert resumed.step_losses == whole.step_losses[4:]


def test_without_neighbours_they_are_mined(make_trainer):
    trainer = make_trainer(hard_batches=True)
    assert all(len(rows) == 4 for rows in trainer.train_dataset["neighbours"])
    assert sorted(trainer.get_train_dataloader().batch_sampler.sampler) == list(range(12))


def test_processes_of_a_run_hold_the_same_embeddings(run_processes, tiny_models, tmp_path):
    rows = emoji_scenes("train", 6, seed=2)
    for number, row in enumerate(rows):
        row["image"].save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])  # broken, which shows in embedding only
    lines = [{"file_name": f"{n}.png", "captions": row["captions"]} for n, row in enumerate(rows)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run_processes(str(Path(__file__).with_name("embed_in_two.py")), *[[tiny_models, tmp_path, tmp_path]] * 2)
    (ids, places, embeds), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert ids == [f"{n}.png" for n in (0, 1, 3, 4, 5)] and places == list(range(5)) and len(embeds) == 5
    assert other[:2] == [ids, places] and torch.equal(other[2], embeds)
