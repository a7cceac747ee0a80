"""Captions for pictures, against transformers' own pipeline and against the chances that samples must have."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from transformers import pipeline

import hf_distinct
from hf_distinct.captioning import Captioner, GumbelNoise

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pictures():
    return list(tiny.scenes(11)["image"])


@pytest.fixture(scope="module")
def captioner(tiny_models):
    return Captioner(tiny_models / "captioner")


def test_captions_are_those_of_the_pipeline(captioner, pictures, tiny_models):
    theirs = pipeline("image-to-text", model=str(tiny_models / "captioner"))(pictures)
    assert captioner(pictures, batch_size=4) == [found[0]["generated_text"].strip() for found in theirs]


def test_neither_order_nor_company_changes_a_caption_or_a_sample(captioner, pictures):
    for count in (0, 3):
        there = captioner(pictures, count, batch_size=4)
        back = captioner(pictures[::-1], count, batch_size=5)
        alone = [captioner([picture], count)[0] for picture in pictures]
        assert there == back[::-1] == alone


def test_another_seed_gives_other_samples_and_the_same_captions(captioner, pictures):
    assert captioner(pictures, 5, seed=1) != captioner(pictures, 5, seed=2)
    assert captioner(pictures, seed=1) == captioner(pictures, seed=2)


def test_gumbel_noise_draws_from_the_softmax():
    shares = torch.tensor([0.5, 0.3, 0.2, 0.0])
    scores = shares.log().expand(4000, 4)
    drawn = Counter(GumbelNoise(range(4000))(None, scores).argmax(dim=1).tolist())
    for token, share in enumerate(shares.tolist()):
        assert drawn[token] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_clip_chooses_the_sample_nearest_to_its_image(captioner, pictures, tiny_models):
    scorer = hf_distinct.ClipScorer(str(tiny_models / "scorer"))
    samples = captioner(pictures, 6)
    images = scorer.encode_images(torch.stack([scorer.transform(picture) for picture in pictures]))
    best = [
        max(texts, key=lambda text, image=image: float(scorer.encode_texts([text])[0] @ image))
        for texts, image in zip(samples, images, strict=True)
    ]
    chosen = hf_distinct.caption(pictures, tiny_models / "captioner", num_samples=6, rerank_with=scorer)
    assert chosen == best
    assert any(a != b[0] for a, b in zip(chosen, samples, strict=True))


def test_one_picture_gives_one_caption(pictures, tiny_models, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    found = hf_distinct.caption(tmp_path / "a.png", tiny_models / "captioner")
    assert isinstance(found, str)
    assert [found] == hf_distinct.caption([pictures[0]], tiny_models / "captioner")


def test_what_cannot_be_done_is_said(captioner, tiny_models, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png"):
        captioner([tmp_path / "b.png"])
    with pytest.raises(ValueError, match="give num_samples"):
        hf_distinct.caption([], tiny_models / "captioner", rerank_with=str(tiny_models / "scorer"))
    with pytest.raises(ValueError, match="nowhere"):
        Captioner(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="batch_size=0"):
        captioner([], batch_size=0)


def test_a_folder_becomes_lines_and_a_sheet(pictures, tiny_models, tmp_path):
    folder, output = tmp_path / "a & b", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for number, picture in enumerate(pictures[:3]):
        picture.save(folder / ("deep" if number else ".") / f"{number}.PNG")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8")
    (folder / "notes.txt").write_text("no picture")
    command = [sys.executable, str(ROOT / "recipes" / "caption.py"), str(folder), "--output_dir", str(output)]
    done = subprocess.run([*command, "--model", str(tiny_models / "captioner")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torn.jpg" in done.stderr and "3 pictures (1 left out)" in done.stdout
    lines = [json.loads(line) for line in (output / "captions.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["0.PNG", "deep/1.PNG", "deep/2.PNG"]
    assert [line["caption"] for line in lines] == hf_distinct.caption(pictures[:3], tiny_models / "captioner")
    sheet = (output / "captions.html").read_text()
    assert 'src="../a%20%26%20b/deep/1.PNG"' in sheet and lines[1]["caption"] in sheet
