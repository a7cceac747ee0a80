"""Captions for pictures, against transformers' own pipeline and against the chances that samples must have."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import tiny
import torch
from PIL import Image
from transformers import pipeline

import hf_distinct
from hf_distinct.data.images import ImageError
from hf_distinct.inference.captioning import Captioner, GumbelNoise


@pytest.fixture(scope="module")
def pictures():
    return list(tiny.scenes(11)["image"])


@pytest.fixture(scope="module")
def captioner(tiny_models):
    return Captioner(tiny_models / "captioner")


def test_captions_are_those_of_the_pipeline(captioner, pictures, tiny_models):
    theirs = pipeline("image-to-text", model=str(tiny_models / "captioner"))(pictures)
    assert captioner(pictures, batch_size=4) == [found[0]["generated_text"].strip() for found in theirs]


@pytest.mark.parametrize("how", ["greedy", "beams", "beams, the first that end", "samples"])
def test_neither_order_nor_company_nor_size_of_the_batch_changes_what_is_said(how):
    # The shipped captioner, whose captions differ in length and are not all alike.
    captioner, pictures = Captioner(hf_distinct.shipped("captioner")), hf_distinct.emoji_scenes("test", 24)["image"]
    if how.startswith("beams"):
        captioner.model.generation_config.update(num_beams=3, early_stopping=how != "beams")
    count = 2 if how == "samples" else 0
    there = captioner(pictures, count, batch_size=24)
    back = captioner(pictures[::-1], count, batch_size=5)
    alone = captioner(pictures, count, batch_size=1)
    assert there == back[::-1] == alone
    assert len(set(map(str, there))) > 12


def test_a_captioner_that_would_rather_sample_writes_its_best_caption(pictures, tiny_models):
    captioner = Captioner(tiny_models / "captioner")
    best = captioner(pictures)
    captioner.model.generation_config.update(do_sample=True, num_return_sequences=2)
    assert captioner(pictures) == best
    captioner.model.generation_config.update(return_dict_in_generate=True, output_scores=True)
    assert captioner(pictures) == best


def test_pictures_read_by_other_processes_get_the_same_captions(captioner, pictures):
    assert captioner(pictures, 2, batch_size=4, num_workers=2) == captioner(pictures, 2)


def test_a_picture_that_cannot_be_read_gives_its_error_in_its_place(captioner, pictures, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    broken = [tmp_path / "b.png", pictures[0], pictures[1], Image.new("RGB", (1, 500)), pictures[2]]
    found = list(captioner.stream(broken, batch_size=3, progress=False))
    assert found[1:3] + found[4:] == captioner(pictures[:3])
    assert isinstance(found[0], ImageError) and "b.png" in str(found[0])
    assert isinstance(found[3], ImageError) and "image 3 of the list" in str(found[3])
    assert all(isinstance(each, ImageError) for each in captioner.stream(broken[:1]))


def test_a_bar_shows_how_far_it_is(captioner, pictures, capsys):
    captioner(pictures, batch_size=5, progress=True)
    assert f"{len(pictures)}/{len(pictures)}" in capsys.readouterr().err
    captioner(pictures)
    assert not capsys.readouterr().err


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
    with pytest.raises(ValueError, match="set num_samples"):
        hf_distinct.caption([], tiny_models / "captioner", rerank_with=str(tiny_models / "scorer"))
    with pytest.raises(ValueError, match="nowhere"):
        Captioner(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="batch_size=0"):
        captioner([], batch_size=0)
    for wrong in ({"num_beams": 0}, {"num_beams": 2, "num_samples": 3}):
        with pytest.raises(ValueError, match="cannot be used with num_samples"):
            captioner([], **wrong)
    for wrong in ({"temperature": 0.0, "num_samples": 3}, {"temperature": 0.5}):
        with pytest.raises(ValueError, match="must be positive, and needs num_samples"):
            captioner([], **wrong)


def test_samples_that_clip_does_not_read_to_their_end_are_warned_of(tiny_models, caplog):
    scorer = hf_distinct.ClipScorer(tiny_models / "scorer")
    Captioner(tiny_models / "captioner", rerank_with=scorer)
    assert not caplog.text
    scorer.context_length = 9
    Captioner(tiny_models / "captioner", rerank_with=scorer)
    assert f"max_new_tokens={tiny.MAX_LENGTH - 1} tokens, but the scorer" in caplog.text


def test_beams_in_place_of_the_config(captioner, pictures):
    """One beam is greedy; more are what `generate` writes with them."""
    captioner.model.generation_config.num_beams = 3
    try:
        greedy, beams = captioner(pictures, num_beams=1), captioner(pictures, num_beams=3)
        assert captioner(pictures) == beams
    finally:
        captioner.model.generation_config.num_beams = 1
    assert captioner(pictures) == greedy
    assert greedy != beams


def test_samples_at_a_low_temperature_are_greedy_captions(captioner, pictures):
    greedy = captioner(pictures)
    assert captioner(pictures, 2, temperature=1e-4) == [[text] * 2 for text in greedy]
    assert captioner(pictures, 2) != [[text] * 2 for text in greedy]
