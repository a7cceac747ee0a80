"""Classifier-free guidance: by hand, against generate without it, and what it is for."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.testing import assert_close
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.generation.guidance import ImageGuidance, drop_images
from hf_distinct.inference.captioning import Captioner

pytestmark = pytest.mark.both_ends


@pytest.fixture(scope="module")
def pixels(tiny_models):
    _, _, image_processor = tiny.load_captioner(tiny_models)
    return image_processor(list(tiny.scenes(6)["image"]), return_tensors="pt").pixel_values


@pytest.fixture
def model(tiny_models):
    return tiny.load_captioner(tiny_models)[0].eval()


def guided(model, gamma, scores, prefix):
    return ImageGuidance(model, gamma)(prefix, scores)


def test_two_words_by_hand(model):
    """Without a picture even odds, with it 3 to 1: gamma 2 makes them 9, and gamma 1/2 the root of 3."""
    scores = torch.tensor([[math.log(3.0), 0.0]])
    blind = SimpleNamespace(logits=torch.tensor([[[7.0, 7.0]]]))
    model.register_forward_hook(lambda *_: blind)
    for gamma, odds in ((1.0, 3.0), (2.0, 9.0), (0.5, math.sqrt(3.0))):
        found = guided(model, gamma, scores, torch.zeros(1, 1, dtype=torch.int64))
        assert_close(found, torch.tensor([[odds / (1 + odds), 1 / (1 + odds)]]).log())


def test_it_is_the_formula_on_two_passes_of_the_decoder(model, pixels):
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5, 7]]).expand(len(pixels), -1)
    hidden = model.encoder(pixels).last_hidden_state
    logits = {}
    for name, seen in (("picture", hidden), ("none", torch.zeros_like(hidden))):
        outputs = model(encoder_outputs=BaseModelOutput(last_hidden_state=seen), decoder_input_ids=prefix)
        logits[name] = outputs.logits[:, -1].detach()
    expected = (logits["none"] + 1.7 * (logits["picture"] - logits["none"])).softmax(dim=-1)
    assert_close(guided(model, 1.7, logits["picture"], prefix).exp(), expected)
    assert_close(guided(model, 1.0, logits["picture"], prefix).exp(), logits["picture"].softmax(dim=-1))
    # What another processor forbids stays forbidden.
    scores = logits["picture"].clone()
    scores[:, 3] = -torch.inf
    found = guided(model, 1.7, scores, prefix)
    assert (found[:, 3] == -torch.inf).all() and not found.isnan().any()


@pytest.mark.parametrize("beams", [1, 3])
def test_gamma_of_one_is_plain_generate_and_larger_ones_are_not(model, pixels, beams):
    plain = model.generate(pixels, num_beams=beams)
    assert torch.equal(model.generate(pixels, num_beams=beams, logits_processor=[ImageGuidance(model, 1.0)]), plain)
    strong = model.generate(pixels, num_beams=beams, logits_processor=[ImageGuidance(model, 6.0)])
    assert strong.shape != plain.shape or not torch.equal(strong, plain)


def test_a_captioner_is_guided_in_greedy_captions_and_in_samples(tiny_models):
    captioner, pictures = Captioner(tiny_models / "captioner"), list(tiny.scenes(6)["image"])
    for count in (0, 3):
        plain = captioner(pictures, count)
        assert captioner(pictures, count, guidance=1.0) == plain
        assert captioner(pictures, count, guidance=6.0) != plain
        assert captioner(pictures, count, guidance=6.0, batch_size=2) == captioner(pictures, count, guidance=6.0)
    with pytest.raises(ValueError, match="guidance=0 must be positive"):
        captioner(pictures, guidance=0)


def test_dropped_pictures_are_zeros_and_the_others_as_they_were():
    torch.manual_seed(0)
    hidden = torch.rand(4000, 2, 3) + 1
    dropped = drop_images(hidden, 0.25)
    gone = (dropped == 0).flatten(1)
    assert (gone.all(dim=1) == gone.any(dim=1)).all()
    assert 0.22 < gone.all(dim=1).float().mean() < 0.28
    assert torch.equal(dropped[~gone.all(dim=1)], hidden[~gone.all(dim=1)])
    assert torch.equal(drop_images(hidden, 0.0), hidden) and not drop_images(hidden, 1.0).any()
