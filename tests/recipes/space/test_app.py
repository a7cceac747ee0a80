"""recipes/space as the Hub runs it: its folder with the package beside it, and what requirements.txt names."""

import configparser
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import pytest
import tiny
import torch
import yaml
from PIL import Image

import hf_distinct
from hf_distinct.scorer import ClipScorer, shipped

ROOT = Path(__file__).parents[3]
SPACE = ROOT / "recipes" / "space"
SIZE = 24
MODULES = {"faiss-cpu": "faiss"}  # where a module has another name than its distribution
START = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop().split()))  # what is None cannot be imported
runpy.run_path("app.py", run_name="__main__")
"""


def left_out() -> list[str]:
    """The modules that the package needs and the Space does without."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = {line for line in config["options"]["install_requires"].split("\n") if line and line[0] != "#"}
    asked = set((SPACE / "requirements.txt").read_text().splitlines())
    assert asked < needed
    found = {re.split(r"[^\w-]", line)[0] for line in needed - asked} - {"rich", "filelock"}  # gradio needs these
    return [MODULES.get(name, name) for name in found]


@pytest.fixture(scope="module")
def served(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gradio_client.Client]:
    """A client of the app, whose captioner after training is the tiny one."""
    folder = tmp_path_factory.mktemp("space")
    for name in ("app.py", "requirements.txt"):
        (folder / name).write_bytes((SPACE / name).read_bytes())
    (folder / "settings.yaml").write_text(yaml.safe_dump({"after": str(tiny_models / "captioner"), "size": SIZE}))
    (folder / "hf_distinct").symlink_to(ROOT / "hf_distinct")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "files"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", START, " ".join(left_out())]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            told = iter(server.stdout.readline, "")
            address = next(re.search(r"http://\S+", line)[0] for line in told if "Running on" in line)
            yield gradio_client.Client(address, download_files=folder / "downloads", verbose=False)
        finally:
            server.kill()


@pytest.fixture(scope="module")
def gallery() -> list[Image.Image]:
    return list(hf_distinct.emoji_scenes("test_twins", SIZE)["image"])


def test_a_picture_gets_its_captions_before_and_after_and_the_places_they_find_it_at(
    served, gallery, tiny_models, tmp_path
):
    scorer, row = ClipScorer("truth_scorer"), 9
    gallery[row].save(tmp_path / "a.png")
    found = served.predict(gradio_client.handle_file(tmp_path / "a.png"), api_name="/describe")
    said = [hf_distinct.caption(gallery[row], model) for model in (shipped("captioner"), tiny_models / "captioner")]
    cosines = scorer.encode_texts(said) @ embedded(scorer, gallery).T
    places = [f"{1 + sorted(each, reverse=True).index(each[row])} of {SIZE}" for each in cosines.tolist()]
    assert list(found) == [said[0], places[0], said[1], places[1]]
    assert said[0] != said[1] and places[0] != places[1]


def test_a_caption_finds_the_nearest_pictures(served, gallery):
    scorer, caption = ClipScorer("truth_scorer"), tiny.scenes(1)["captions"][0][0]
    cosines = embedded(scorer, gallery) @ scorer.encode_texts([caption])[0]
    found = served.predict(caption, api_name="/find")
    best = cosines.topk(len(found))
    assert [each["caption"] for each in found] == [f"{cosine:.2f}" for cosine in best.values.tolist()]
    shown = [pixels(Image.open(each["image"]).convert("RGB")) for each in found]
    apart = torch.cdist(torch.stack(shown), torch.stack([pixels(picture) for picture in gallery]))
    assert apart.argmin(dim=1).tolist() == best.indices.tolist()  # WebP changes them a little
    assert served.predict(" ", api_name="/find") == []


def test_large_pictures_of_a_gallery_are_kept_small(tmp_path):
    Image.new("L", (2048, 1024)).save(tmp_path / "large.png")
    app = runpy.run_path(str(SPACE / "app.py"))
    assert [each.size for each in app["pictures_of"](app["Settings"](gallery=str(tmp_path)))] == [(1024, 512)]


def test_a_gallery_of_ones_own_and_no_captioner_after(tmp_path, gallery, capsys):
    app = runpy.run_path(str(SPACE / "app.py"))
    (tmp_path / "a.png").write_bytes(b"no picture")
    for number, picture in enumerate(gallery[:3]):
        picture.save(tmp_path / f"{number}.png")
    settings = app["Settings"](gallery=str(tmp_path), size=2)
    assert [each.tobytes() for each in app["pictures_of"](settings)] == [each.tobytes() for each in gallery[:2]]
    settings.size = 4
    assert len(app["pictures_of"](settings)) == 3 and "a.png" in capsys.readouterr().out
    scorer = ClipScorer("truth_scorer")
    before, chosen = app["captioners_of"](settings, scorer).values()
    assert before(gallery[:2]) == hf_distinct.caption(gallery[:2], shipped("captioner"))
    best = hf_distinct.caption(gallery[:2], shipped("captioner"), num_samples=10, rerank_with=scorer)
    assert chosen(gallery[:2]) == best


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float()


def embedded(scorer: hf_distinct.ClipScorer, pictures: list[Image.Image]) -> torch.Tensor:
    return scorer.encode_images(torch.stack([scorer.transform(picture) for picture in pictures]))
