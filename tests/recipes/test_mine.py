"""recipes/mine.py as a person runs it, by two processes; and recipes/train.py that takes what it left."""

import json
from pathlib import Path

import forked
import pytest
import tiny
from safetensors.torch import load_file

from hf_distinct import ClipScorer, RLCaptionConfig, load_captions
from hf_distinct.data.caption_embeddings import CaptionEmbeddings

COUNT = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of captioned pictures; one cannot be decoded."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, row in enumerate(tiny.scenes(COUNT)):
        row["image"].save(folder / f"{number}.png")
        split = "test" if number >= COUNT - 8 else "train"
        lines.append(json.dumps({"file_name": f"{number}.png", "text": row["captions"], "split": split}))
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:200])
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def mined(pictures: Path, tiny_models: Path, tmp_path_factory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("mined") / "deep"
    flags = [
        "--dataset", pictures, "--caption_column", "text", "--scorer", tiny_models / "scorer", "--output_dir", output,
        "--num_neighbours", 3, "--first_rank", 2, "--num_workers", 1,
    ]  # fmt: skip
    two = str(Path(__file__).parents[1] / "distributed" / "recipe_in_two.py")
    return output, tiny.run_processes(tiny.free_port(), two, *[["mine.py", *flags]] * 2)


def test_it_leaves_what_it_says(mined):
    output, told = mined
    (folder,) = output.glob("embeddings-*")
    embeddings = CaptionEmbeddings.load(folder)
    # An eighth of what is no test picture is held out for validation: 52 - 5 = 47 to train on, of which one is broken.
    assert len(embeddings) == 46
    neighbours = load_file(output / "neighbours.safetensors")
    assert neighbours["rows"].shape == (len(embeddings), 4)
    statistics = json.loads((output / "statistics.json").read_text())
    assert statistics["ranks taken"] == [2, 4] and statistics["images"] == len(embeddings)
    html = (output / "neighbours.html").read_text()
    assert html.count("<article>") == 24 and html.count("data:image/png;base64,") == 24 * 4
    assert "rank 2, 0." in html
    # 5 of 52 pictures are held out for validation: what the scorer may have been trained on is not asked.
    assert "among 5 pictures of the split validation" in told and "among 5 pictures of the split validation" in html
    assert statistics["split of the gallery"] == "validation" and statistics["gallery"] == 5
    assert told.count("similarity\n") == 1  # one of the two processes speaks
    assert "R@1 of people's captions" in told


def test_a_scorer_that_cannot_retrieve_here_is_warned_about(mined):
    """The tiny scorer is random."""
    _, told = mined
    assert "The scorer can hardly retrieve in this domain" in told and "hf-distinct train-clip" in told


def test_training_takes_it_all_from_there(mined, pictures, tiny_models, tmp_path):
    output, _ = mined
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    forked.run(
        "train.py", "--dataset", pictures, "--caption_column", "text", "--mined", output,
        "--scorer", tiny_models / "scorer", "--judge", tiny_models / "scorer", "--pool_neighbours", 2,
        "--model_name_or_path", tiny_models / "captioner", "--output_dir", tmp_path / "run", "--max_steps", 1,
        "--per_device_train_batch_size", 4, "--max_reference_length", tiny.MAX_LENGTH, "--num_rollouts", 2,
        "--discriminator_pretrain_steps", 0, "--hard_batches", "true",
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_it_is_refused_for_anything_else(mined, pictures, tiny_models):
    output, _ = mined
    train = forked.module("train")
    scorer = ClipScorer(str(tiny_models / "scorer"))
    rows = load_captions(pictures, caption_column="text")["train"]
    settings, config = train.Settings(mined=str(output)), RLCaptionConfig(output_dir=None)
    with pytest.raises(ValueError, match="neighbours of another dataset, other images or another scorer"):
        train.take_mined(rows.select(range(9)), scorer, settings, config)
    with pytest.raises(FileNotFoundError, match=r"neighbours\.safetensors"):
        train.take_mined(rows, scorer, train.Settings(mined=str(pictures)), config)


def test_a_scorer_is_checked_on_pictures_it_has_not_seen(tiny_models):
    recipe = forked.module("mine")
    scorer = ClipScorer(str(tiny_models / "scorer"))
    splits = {"train": tiny.scenes(12), "validation": tiny.scenes(3), "test": tiny.scenes(6)}
    found = recipe.check(splits, scorer, 4, 0)
    assert (found.split, found.seen, found.found.gallery) == ("test", False, 6)
    found = recipe.check({name: splits[name] for name in ("train", "validation")}, scorer, 4, 0)
    assert (found.split, found.seen, found.found.gallery) == ("train", True, 12)
    assert "too high if the scorer was trained on it" in found.where


def test_a_scorer_must_be_named_for_pictures_of_ones_own():
    recipe = forked.module("mine")
    with pytest.raises(ValueError, match="--dataset pictures needs --scorer"):
        recipe.Settings(dataset="pictures")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_never_comes_is_told_in_one_line(rank, free_port, tmp_path, monkeypatch):
    there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**there, "MASTER_PORT": str(free_port)}.items():
        monkeypatch.setenv(name, value)
    done = forked.run("mine.py", "--train_size", 4, "--ddp_timeout", 1, "--output_dir", tmp_path, fails=True)
    assert "mine.py: error: Another process of this run has ended or cannot be reached" in done.stderr.splitlines()[-1]
