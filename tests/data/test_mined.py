"""What recipes/mine.py leaves, pushed by one machine and pulled by another, where the same pictures lie elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import published_forms
import pytest
import torch
from datasets import Dataset
from loopback_hub import TOKEN, USER, LoopbackHub

from hf_distinct import pull, push_folder
from hf_distinct.data.embedding_cache import cache_names
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.mined import write_portable
from hf_distinct.data.mining import MiningSettings, find_neighbours
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.data.table import caption_features

NAME = f"{USER}/mined"
STATISTICS = {"R@1 of people's captions": 0.5, "gallery": 8}
PULL = "import sys; from hf_distinct import pull; print(pull('tester/mined', revision=sys.argv[1]))"


def pictures(folder: Path) -> Dataset:
    """Ten pictures on disk, the sixth of which is broken."""
    folder.mkdir()
    rows: dict[str, list] = {"image": [], "captions": [], "image_id": []}
    for number, picture in enumerate(published_forms.jpegs(10)):
        (folder / f"{number}.jpg").write_bytes(picture if number != 5 else picture[:300])
        rows["image"].append(str(folder / f"{number}.jpg"))
        rows["captions"].append([f"Picture {number}."])
        rows["image_id"].append(f"id{number}")
    return Dataset.from_dict(rows, features=caption_features())


@pytest.fixture
def mined(scorer, tmp_path):
    """The folder, and its neighbours."""
    dataset, embeddings = embed_dataset(pictures(tmp_path / "here"), scorer, tmp_path / "mined")
    found = find_neighbours(dataset, embeddings, MiningSettings(num_neighbours=2, max_similarity=2.0))
    found.save(tmp_path / "mined" / FILE)
    (tmp_path / "mined" / "statistics.json").write_text(json.dumps({**STATISTICS, **found.statistics()}))
    (tmp_path / "mined" / "neighbours.html").write_text("pictures of somebody")
    return tmp_path / "mined", found


def test_another_machine_finds_it_and_embeds_nothing(mined, scorer, tmp_path, monkeypatch):
    folder, found = mined
    with LoopbackHub() as hub:
        hub.adopt(monkeypatch)
        address = push_folder(folder, NAME, repo_type="dataset", private=True, revision="v1")
        push_folder(folder, NAME, repo_type="dataset", private=True, revision="v1")  # nothing has changed
        repo = hub.repos[f"datasets/{NAME}"]
        assert address == f"{hub.endpoint}/datasets/{NAME}" and repo.commits == 1 and repo.private
        files = repo.history[repo.branches["v1"]]
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = subprocess.run(
            [sys.executable, "-c", PULL, "v1"], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    arrays = {"caption_embeds.npy", "caption_offsets.npy", "image_embeds.npy", "manifest.json"}
    assert {name.split("/")[-1] for name in files} == {"README.md", FILE, "statistics.json"} | arrays
    for name, content in files.items():
        assert str(tmp_path.parent).encode() not in content and TOKEN.encode() not in content, name
    assert "| R@1 of people's captions | 0.500 among 8 images |" in files["README.md"].decode()
    assert "of 9 images and 9 captions" in files["README.md"].decode().replace("\n", " ")

    shutil.rmtree(folder)
    pulled, there = Path(done.stdout.strip()), pictures(tmp_path / "there")
    names = cache_names(there, scorer)
    neighbours = Neighbours.load(pulled / FILE, *names)
    assert (neighbours.rows == found.rows).all()
    monkeypatch.setattr(type(scorer), "encode_images", None)  # nobody asks it
    dataset, embeddings = embed_dataset(there, scorer, pulled)
    assert dataset["image_id"][:] == [f"id{n}" for n in range(10) if n != 5]
    assert embeddings.folder == pulled / names[1]
    assert not [path for path in pulled.rglob("*") if path.name == "neighbours.html"]


def test_pictures_of_another_size_or_captions_of_other_words_are_not_found(scorer, tmp_path):
    here, there = pictures(tmp_path / "here"), pictures(tmp_path / "there")
    own, shared = cache_names(here, scorer)
    assert cache_names(there, scorer)[0] != own and cache_names(there, scorer)[1] == shared
    with (tmp_path / "there" / "3.jpg").open("ab") as file:
        file.write(b"x")
    assert cache_names(there, scorer)[1] != shared
    other = here.map(lambda row: {"captions": ["Other words."]})
    assert cache_names(other, scorer)[1] != shared


def test_what_mining_did_not_finish_is_not_pushed(tmp_path):
    with pytest.raises(ValueError, match=r"is not a completed output folder of `hf-distinct mine`"):
        push_folder(tmp_path, NAME, repo_type="dataset", token="hf_never_used")


def test_a_folder_is_what_it_is(tmp_path):
    assert pull(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["tester/nothing", "no such/folder/anywhere"])
def test_neither_a_folder_nor_a_data_set(name, monkeypatch):
    with LoopbackHub() as hub:
        hub.adopt(monkeypatch)
        with pytest.raises(ValueError, match=f"'{name}' is neither a folder nor a dataset on {hub.endpoint}"):
            pull(name)


def test_links_hold_the_very_numbers(mined, tmp_path):
    """What is staged is no second copy on the disk."""
    folder, found = mined
    (tmp_path / "staged").mkdir()
    write_portable(folder, tmp_path / "staged")
    (own,), (staged,) = (list(path.rglob("image_embeds.npy")) for path in (folder, tmp_path / "staged"))
    assert own.samefile(staged) and own.parent.name != staged.parent.name
    assert torch.equal(torch.tensor(Neighbours.load(tmp_path / "staged" / FILE).rows), torch.tensor(found.rows))


# ------------------------------------------------------------------------------------------- a folder of somebody else


def test_links_that_lead_out_are_not_pushed(mined, tmp_path):
    folder, found = mined
    for name in ("statistics.json", *(f"{found.embeddings}/{name}" for name in ("manifest.json", "image_embeds.npy"))):
        path = folder / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=f"{path.name} is a link that leads out of the folder, so nothing was"):
            write_portable(folder, tmp_path / "here")
        path.unlink()
        (tmp_path / "elsewhere").rename(path)


@pytest.mark.parametrize("name", ["../here", "..", "", "/etc", "a\\b", "9" * 5000])
def test_names_that_lead_out_are_not_followed(mined, tmp_path, name):
    folder, found = mined
    manifest = folder / found.embeddings / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "portable_name": name}))
    with pytest.raises(ValueError, match="manifest.json names .*, which is not a folder next to it"):
        write_portable(folder, tmp_path / "here")
    found.embeddings = name
    found.save(folder / FILE)
    with pytest.raises(ValueError, match="neighbours.safetensors.*folder next to it"):
        write_portable(folder, tmp_path / "here")


def test_pickled_arrays_are_not_pushed(mined, tmp_path):
    folder, found = mined
    np.save(folder / found.embeddings / "image_embeds.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="contains no caption embeddings"):
        write_portable(folder, tmp_path / "here")


def test_what_a_manifest_says_is_text_on_the_card_and_names_no_place(mined, tmp_path):
    folder, found = mined
    manifest = folder / found.embeddings / "manifest.json"
    told = json.loads(manifest.read_text())
    told |= {"scorer": "/home/alice/<b>[x](http://x)", "fingerprint": "a`<i>", "losses": {"1": "/home/alice/2.png"}}
    manifest.write_text(json.dumps(told))
    (tmp_path / "staged").mkdir()
    write_portable(folder, tmp_path / "staged")
    card = (tmp_path / "staged" / "README.md").read_text()
    assert r"| CLIP | x) (fingerprint `a'<i>`) |" in card and "alice" not in card
    assert not [path for path in (tmp_path / "staged").rglob("*.json") if "alice" in path.read_text()]


OTHER = '{"portable_name": "x", "scorer": "s", "failures": 3}'


@pytest.mark.parametrize("content", ["[]", "{", "{}", OTHER, "[" * 100_000])
def test_a_broken_manifest_is_one_error(mined, tmp_path, content):
    folder, found = mined
    (folder / found.embeddings / "manifest.json").write_text(content)
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="is not a completed output folder of `hf-distinct mine`"):
        write_portable(folder, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())
