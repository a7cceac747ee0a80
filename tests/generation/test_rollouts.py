"""Writing captions and scoring them, against plain transformers calls that go from pixels, token by token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper

from hf_distinct.captioner import caption_logits, token_id
from hf_distinct.generation.labels import decode, join_labels, repeats
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.losses import IGNORED_LABEL, token_log_probs

HOW = {
    "sample": {"do_sample": True, "num_return_sequences": 3, "temperature": 1.3},
    "greedy": {},
    "beam": {"num_beams": 4, "no_repeat_ngram_size": 3},
}


@pytest.fixture
def captioner(tiny_models):
    """Model (float64: what differs then differs for a reason), tokenizer, and pixels of four pictures."""
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    pixels = image_processor(images=list(tiny.scenes(4)["image"]), return_tensors="pt")["pixel_values"].double()
    return SimpleNamespace(model=model.double().eval(), tokenizer=tokenizer, pixels=pixels)


def encode(c):
    return c.model.encoder(c.pixels).last_hidden_state


def write(c, how, **settings):
    torch.manual_seed(0)
    return generate_labels(c.model, encode(c), rollout_config(c.model, **HOW[how], **settings))


def score(c, labels):
    rows = encode(c).repeat_interleave(len(labels) // len(c.pixels), dim=0)
    return token_log_probs(caption_logits(c.model, rows, labels), labels)


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_scores_are_those_of_a_plain_token_by_token_forward(captioner, how):
    labels = write(captioner, how)
    found = score(captioner, labels)
    start = captioner.model.config.decoder_start_token_id
    assert found.shape == labels.shape
    for row, caption in enumerate(labels.tolist()):
        pixels = captioner.pixels[row * len(captioner.pixels) // len(labels)][None]
        prefix = [start]
        for place, token in enumerate(caption):
            if token == IGNORED_LABEL:
                assert found[row, place] == 0
                continue
            logits = captioner.model(pixel_values=pixels, decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
            assert found[row, place].item() == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-10)
            prefix.append(token)


@torch.no_grad()
def test_scores_do_not_change_when_the_batch_gains_padding(captioner):
    labels = write(captioner, "sample")
    lengths = (labels != IGNORED_LABEL).sum(dim=1)
    assert lengths.min() < lengths.max()
    together = score(captioner, torch.nn.functional.pad(labels, (0, 2), value=IGNORED_LABEL))
    rows = encode(captioner).repeat_interleave(3, dim=0)
    for row, length in enumerate(lengths.tolist()):
        alone = labels[row : row + 1, :length]
        expected = token_log_probs(caption_logits(captioner.model, rows[row : row + 1], alone), alone)
        torch.testing.assert_close(together[row : row + 1, :length], expected, atol=1e-12, rtol=0)
        assert (together[row, length:] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_captions_are_those_of_generate_from_pixels_and_the_encoder_rests(captioner, how):
    labels = write(captioner, how)
    torch.manual_seed(0)
    pixels, settings = captioner.pixels, HOW[how]
    if how == "sample":
        pixels = pixels.repeat_interleave(settings["num_return_sequences"], dim=0)
        drawing = [TemperatureLogitsWarper(settings["temperature"]), MultinomialSampling()]
        settings = {"logits_processor": LogitsProcessorList(drawing)}
    expected = captioner.model.generate(pixels, **settings)
    assert decode(captioner.tokenizer, labels) == captioner.tokenizer.batch_decode(expected, skip_special_tokens=True)
    hidden, calls = encode(captioner), []
    captioner.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    generate_labels(captioner.model, hidden, rollout_config(captioner.model, **HOW[how]))
    assert calls == []


@torch.no_grad()
def test_captions_stop_at_their_first_end_token_also_where_that_is_the_padding(captioner):
    end = captioner.tokenizer.eos_token_id
    labels = write(captioner, "sample")
    captioner.model.generation_config.pad_token_id = captioner.model.config.pad_token_id = end
    assert torch.equal(write(captioner, "sample"), labels)
    some_ended_early = False
    for caption in labels.tolist():
        real = [token for token in caption if token != IGNORED_LABEL]
        assert caption == real + [IGNORED_LABEL] * (len(caption) - len(real))  # nothing real behind padding
        assert end not in real[:-1]
        assert real[-1] == end or len(real) == labels.shape[1]
        some_ended_early |= len(real) < labels.shape[1]
    assert some_ended_early


@torch.no_grad()
def test_samples_come_from_the_policy_whatever_the_checkpoint_prefers(captioner):
    """Frequencies of 20,000 first tokens against the softmax; top_k=50 and the like would cut the tail away."""
    preferences = {"top_k": 3, "top_p": 0.5, "temperature": 0.2, "num_beams": 2, "repetition_penalty": 3.0}
    captioner.model.generation_config.update(**preferences, do_sample=True)
    config = rollout_config(
        captioner.model, do_sample=True, num_return_sequences=20_000, temperature=30.0, max_new_tokens=1
    )
    torch.manual_seed(0)
    labels = generate_labels(captioner.model, encode(captioner)[:1], config)
    assert labels.shape == (20_000, 1)
    start = torch.tensor([[captioner.model.config.decoder_start_token_id]])
    logits = captioner.model(pixel_values=captioner.pixels[:1], decoder_input_ids=start).logits[0, -1]
    expected = (logits / 30.0).softmax(-1)
    assert (expected * 20_000 > 5).sum() > 50  # more tokens than top_k=50 would leave
    found = torch.bincount(labels[:, 0], minlength=len(expected)) / 20_000
    assert (found - expected).abs().sum() / 2 < 0.04


@torch.no_grad()
def test_length_is_that_of_the_generation_config_unless_said(captioner):
    generation = captioner.model.generation_config
    generation.eos_token_id = captioner.model.config.eos_token_id = 0  # never written: nothing ends early
    generation.max_length = GenerationConfig().max_length  # nobody said any
    captioner.model.decoder.transformer.wpe = torch.nn.Embedding(30, 32, dtype=torch.float64)
    expected = captioner.model.generate(captioner.pixels)
    assert write(captioner, "greedy").shape[1] == expected.shape[1] - 1 == 20
    generation.max_length = 9  # the start token counts, and is no part of the labels
    assert write(captioner, "greedy").shape[1] == 8
    assert write(captioner, "greedy", max_new_tokens=5).shape[1] == 5
    generation.max_new_tokens = 3
    assert write(captioner, "greedy").shape[1] == 3
    assert write(captioner, "greedy", max_new_tokens=5).shape[1] == 5


def test_gradient_reaches_encoder_and_decoder_from_real_tokens_alone(captioner):
    labels = write(captioner, "greedy")
    padded = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)
    gradients = []
    for rows in (labels, padded):
        captioner.model.zero_grad()
        score(captioner, rows).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in captioner.model.named_parameters() if p.grad is not None})
    assert any(name.startswith("encoder.") for name in gradients[0])
    assert any(name.startswith("decoder.") for name in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-10, rtol=1e-10)


def test_join_labels_by_hand():
    joined = join_labels(torch.tensor([[1, 2, 3]]), torch.tensor([[4], [5]]), torch.empty(0, 7, dtype=torch.int64))
    assert joined.tolist() == [[1, 2, 3], [4, -100, -100], [5, -100, -100]]


def test_decode_leaves_special_tokens_and_padding_out(captioner):
    tokenizer = captioner.tokenizer
    words = tokenizer("a red", add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[*words, tokenizer.eos_token_id], [tokenizer.eos_token_id, -100, -100]])
    assert decode(tokenizer, labels) == ["a red", ""]
    assert decode(captioner.tokenizer, torch.empty(0, 3, dtype=torch.int64)) == []


def test_token_id_looks_at_the_generation_config_first(captioner):
    model = captioner.model
    model.generation_config.eos_token_id, model.config.eos_token_id = [7, 8], 9
    assert token_id(model, "eos_token_id") == 7
    model.generation_config.eos_token_id = None
    assert token_id(model, "eos_token_id") == 9


def test_logits_are_those_of_the_model_from_pixels_with_labels(captioner):
    """`caption_logits` of given hidden states are the logits of the model's own forward from pixels."""
    labels = write(captioner, "greedy")
    whole = captioner.model(pixel_values=captioner.pixels, labels=labels.masked_fill(labels == IGNORED_LABEL, 0))
    real = labels != IGNORED_LABEL
    torch.testing.assert_close(caption_logits(captioner.model, encode(captioner), labels)[real], whole.logits[real])


def test_a_caption_repeats_itself_where_three_tokens_come_twice():
    captions = [[1, 2, 3, 4, 1, 2, 3, 9], [1, 2, 3, 4, 1, 2, 4, 9], [5, 5, 5, 5, 9], [5, 5, 5, 9], [9], []]
    labels = torch.full((6, 8), -100)
    for row, tokens in enumerate(captions):
        labels[row, : len(tokens)] = torch.tensor(tokens)
    assert repeats(labels).tolist() == [True, False, True, False, False, False]
    assert repeats(labels[:, :2]).tolist() == [False] * 6
