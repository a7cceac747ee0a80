"""recipes/estimate_cost.py: its hours on a report with round figures, and its sizes beside those of real files."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import forked
import pytest
import tiny
import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from safetensors import safe_open

from hf_distinct import ClipScorer, embed_dataset, mine_neighbours
from hf_distinct.data.coco_results import write_coco_results
from hf_distinct.data.encoded_images import encode_images
from hf_distinct.data.table import caption_features

IMAGES = 40


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(forked.RECIPES)  # as python does for a script
        return importlib.import_module("estimate_cost")


def bytes_of(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern))


def test_hours_of_a_training_by_hand(tmp_path):
    report = {"settings": {"images": 4}, "seconds": {"sample5": {"ours": {"tflop": 2.0}}}, "parameters": 225_000_000}
    (tmp_path / "report.json").write_text(json.dumps(report))
    arguments = ["--images", 720_000, "--gpus", 1, 2, "--epochs", 2, "--batch", 10, "--tokens", 6]
    arguments += ["--sustained_tflops", 100, "--bandwidth", 10, "--workers", 4]
    said = forked.run("estimate_cost.py", "--report", tmp_path / "report.json", *arguments).stdout
    host = float(re.search(r"host, ms a token: ([\d.]+)", said)[1])
    decoding = float(re.search(r"decoding, ms a picture: ([\d.]+)", said)[1])
    rows = [line for line in said.splitlines() if line[:6] == "720000" and "GPU" in line]
    table = {line.split(",")[1].split()[0]: line.split()[4:] for line in rows}
    one, two = ([float(value) for value in table[gpus]] for gpus in "12")
    # 144,000 steps of ten images; an image takes half a TFLOP, a step ten tokens' worth of the host.
    assert one[0] == 2.0 and two[0] == 1.0
    assert one[1] == pytest.approx(0.4 * host, rel=0.1) and two[1] == pytest.approx(one[1] / 2, abs=2e-3)
    assert one[2] == 0 and two[2] == pytest.approx(72_000 * 0.18 / 3600, abs=1e-3)  # 2 * 900 MB at 10 GB/s
    assert one[3] == pytest.approx(0.1 * decoding, rel=0.1)
    assert one[4] == pytest.approx(max(sum(one[:3]), one[3]), abs=2e-3)
    assert one[5] == pytest.approx(one[3] / 2, abs=1e-3)


def test_without_a_report_sizes_are_told(tmp_path):
    said = forked.run("estimate_cost.py", "--images", 1000, 10**10, "--gpus", 1, 2, "--folder", tmp_path).stdout
    assert "hours" not in said
    assert "1,000 images here: disk enough: " in said and "10,000,000,000 images here: disk NOT ENOUGH: " in said


def test_memory_is_that_of_stages_that_are_measured(recipe):
    assert set(recipe.MEMORY) <= set(importlib.import_module("benchmarks.growth_stages").STAGES)


def test_embeddings_and_mined_neighbours_take_what_is_estimated(tmp_path, tiny_models, recipe):
    settings = recipe.Settings(dim=16, captions=5, neighbours=3)
    dataset, embeddings = embed_dataset(tiny.scenes(IMAGES), ClipScorer(str(tiny_models / "scorer")), tmp_path)
    header = 128  # of each array
    assert bytes_of(tmp_path, "*.npy") == recipe.embedding_bytes(settings, IMAGES) + 3 * header
    mine_neighbours(dataset, embeddings, 3)
    sizes = bytes_of(tmp_path, "index*.faiss"), bytes_of(tmp_path, "neighbours*.safetensors")
    assert 0 <= sizes[0] - recipe.index_bytes(settings, IMAGES) < 100
    wanted = recipe.disk(settings, IMAGES)["mining"] - recipe.index_bytes(settings, IMAGES)
    assert 0 <= sizes[1] - wanted < 1000  # names and settings


def test_index_of_cells_takes_what_is_estimated(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(recipe, "EXACT_COMPARISONS", 0)
    rows, dim = 20_000, 64
    vectors = torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    index = importlib.import_module("hf_distinct.data.similarity_index")
    made = index.SimilarityIndex(vectors, "ivf", 2, 0.1, index.UnitRows(vectors))
    made.open(tmp_path / "index.faiss")
    wanted = recipe.index_bytes(recipe.Settings(dim=dim), rows)
    assert (tmp_path / "index.faiss").stat().st_size == pytest.approx(wanted, rel=0.1)


def test_encoder_cache_takes_what_is_estimated(tmp_path, tiny_models, recipe):
    model, _, image_processor = tiny.load_captioner(tiny_models)
    encode_images(tiny.scenes(IMAGES), model.encoder, image_processor, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        _, states, width = opened.get_tensor("states").shape
    wanted = recipe.disk(recipe.Settings(encoder_states=states * width), IMAGES)["encoder cache"]
    assert 0 <= file.stat().st_size - wanted < 1000


def test_checkpoint_takes_what_is_estimated(tmp_path, tiny_models, recipe):
    trainer = tiny.make_trainer(tiny_models, tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    settings = recipe.Settings(dim=16, parameters=sum(each.numel() for each in trainer.model.parameters()))
    sizes = [file.stat().st_size for file in (tmp_path / "checkpoint-1").iterdir()]
    assert sum(sizes) == pytest.approx(recipe.checkpoint_bytes(settings), rel=0.05)


def test_arrow_file_takes_what_is_estimated(tmp_path, recipe):
    rows = 3000
    columns = {
        "image": ["/" + 59 * "x"] * rows, "captions": [[53 * "c"] * 4] * rows,
        "image_id": [f"{row + 1000}" for row in range(rows)],
    }  # fmt: skip
    writer = ArrowWriter(features=caption_features(), path=str(tmp_path / "train.arrow"))
    writer.write_table(Dataset.from_dict(columns, features=caption_features()).data.table)
    size = writer.finalize() and (tmp_path / "train.arrow").stat().st_size
    settings = recipe.Settings(captions=4, characters=53, path_characters=60)
    assert size == pytest.approx(recipe.arrow_bytes(settings, rows), rel=0.03)


def test_captions_of_an_evaluation_take_what_is_estimated(tmp_path, recipe):
    rows = 2000
    write_coco_results(tmp_path / "said.json", [f"{row + 5000}" for row in range(rows)], [53 * "c"] * rows)
    page = recipe.PAGE_PICTURES * recipe.PICTURE_BYTES
    wanted = recipe.disk(recipe.Settings(characters=53), rows)["evaluation"] - page
    assert abs((tmp_path / "said.json").stat().st_size - wanted) < 10


def test_a_step_by_hand(recipe):
    settings = recipe.Settings(batch=2, rollouts=3, neighbours=1, dim=10, parameters=1000, memory_batches=1)
    alone, three = (recipe.step(settings, gpus) for gpus in (1, 3))
    assert alone["pools sent"] == alone["pools received"] == alone["gradients"] == 0
    # Of six rollouts and two references, and of four images: see test_messages.py.
    assert three["pools sent"] == 8 * 64 + 4 * 48 and three["pools received"] == 3 * three["pools sent"]
    assert three["gradients"] == 8000
    assert three["pools held"] == 6 * three["pools sent"] and alone["pools held"] == 2 * three["pools sent"]
    # Of each of eight texts, the others of three processes, now and in the batch before; but never more than a block.
    assert three["contrast"] == 8 * 8 * 3 * 2 * recipe.PAIR_BYTES
    many = recipe.step(recipe.Settings(batch=64, memory_batches=10), 64)
    assert many["contrast"] == recipe.PAIRS * recipe.PAIR_BYTES


def test_a_report_without_samples_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"seconds": {"beam": {}}}))
    done = forked.run("estimate_cost.py", "--report", tmp_path / "report.json", fails=True)
    assert "has no sampled rollouts: run benchmarks/step.py --rollouts sample" in done.stderr
