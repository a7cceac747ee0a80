"""The trainer on real, tiny models (see tiny.py), against values derived from pixels and strings in plain Python."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import tiny
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer
from hf_distinct.data import stable_hash
from hf_distinct.evaluation.captions import CiderD
from hf_distinct.rewards import TextKind

POOLER = "encoder.pooler."  # a part of stock ViT that no captioner uses


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def a_batch(trainer):
    """The first batch as the trainer gets it, collated from rows in their order."""
    rows = [trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)]
    trainer.data_collator.epoch = 0
    return trainer._prepare_inputs(trainer.data_collator(rows))


def brevity(captions, references, scene, **columns):
    """Rewards short captions; sees every column."""
    assert len(captions) == len(references) == len(scene) == len(columns["image_id"])
    assert all("background" in facts for facts in scene)
    return [1.0 / (1 + len(caption.split())) for caption in captions]


# ------------------------------------------------------------------------------------- the loss, derived once more


def plain_captions(trainer, inputs, **how):
    """Captions by a plain call of generate on pixels: token rows without padding, and texts."""
    model, tokenizer = trainer.model, trainer.processing_class
    sequences = model.generate(inputs["pixel_values"], **how)[:, 1:].tolist()
    end = tokenizer.eos_token_id
    rows = [row[: row.index(end) + 1] if end in row else row for row in sequences]
    return rows, [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def log_prob(model, pixels, tokens):
    """Mean log-probability of a caption's tokens: from pixels, the caption alone.

    Not from the model's own loss: in transformers 4.57 it shifts the labels twice (huggingface/transformers#40111).
    """
    logits = model(pixel_values=pixels[None], labels=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)[range(len(tokens)), tokens].mean().item()


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def log_odds(positive, others):
    return positive - math.log(sum(math.exp(other) for other in others)) if others else 0.0


def plain_contrastive(trainer, i, caption, texts, images):
    """Mean of both directions; ``texts``: (string, kind, place of its image), ``images``: (embedding, image id)."""
    a, s, embed = trainer.args, trainer.scorer.logit_scale, trainer.embed
    own, own_id = images[i]
    counts = {TextKind.REFERENCE: a.pool_references, TextKind.GREEDY: a.pool_greedy}
    others = [
        s * cosine(embed(text), own)
        for text, kind, place in texts
        if text != caption
        and counts.get(kind, True)
        and (a.pool_own_rollouts or kind != TextKind.ROLLOUT or place != i)
        and (a.pool_other_captions or place == i)
    ]
    positive = s * cosine(embed(caption), own)
    i2t = log_odds(positive, others)
    t2i = log_odds(positive, [s * cosine(embed(caption), image) for image, image_id in images if image_id != own_id])
    return (min(i2t, a.reward_clamp) + min(t2i, a.reward_clamp)) / 2 / s


@torch.no_grad()
def plain_loss(trainer, inputs):
    """The loss of one batch and its parts, from pixels and strings; consumes randomness as a step does."""
    a, model, scorer = trainer.args, trainer.model.eval(), trainer.scorer
    pixels, number = inputs["pixel_values"], len(inputs["pixel_values"])
    memo = {}

    def embed(text):
        if text not in memo:
            memo[text] = scorer.encode_texts([text])[0].tolist()
        return memo[text]

    trainer.embed = embed
    if a.rollouts == "beam":
        how = {"num_beams": a.num_beams, "no_repeat_ngram_size": a.no_repeat_ngram_size}
    else:
        how = {
            "do_sample": True, "top_k": 0, "num_return_sequences": a.num_rollouts, "temperature": a.temperature
        }  # fmt: skip
    rows, rollouts = plain_captions(trainer, inputs, **how)
    _, greedy = plain_captions(trainer, inputs)
    per_image, references = a.num_rollouts, inputs["captions"]

    def vector(picture):
        return scorer.encode_images(scorer.transform(picture.convert("RGB"))[None])[0].tolist()

    dataset = trainer.train_dataset
    images = [(vector(dataset[i]["image"]), dataset[i]["image_id"]) for i in range(number)]
    if a.pool_neighbours:
        near = [row for i in range(number) for row in dataset[i]["neighbours"]]
        images += [(vector(dataset[row]["image"]), dataset[row]["image_id"]) for row in near]
    texts = [(text, TextKind.ROLLOUT, n // per_image) for n, text in enumerate(rollouts)]
    texts += [(text, TextKind.REFERENCE, i) for i in range(number) for text in references[i]]
    texts += [(text, TextKind.GREEDY, i) for i, text in enumerate(greedy)]
    corpus = CiderD([list(row) for row in dataset["captions"]])

    def reward(i, text):
        values = {
            "contrastive": lambda: plain_contrastive(trainer, i, text, texts, images),
            "similarity": lambda: cosine(embed(text), images[i][0]),
            "cider": lambda: corpus.score(text, dataset[i]["captions"]),
            "brevity": lambda: 1.0 / (1 + len(text.split())),
        }
        shares = a.reward_weights or [1.0] * len(a.reward)
        total = sum(share * values[name.split(".")[-1]]() for name, share in zip(a.reward, shares, strict=True))
        pair = torch.tensor([[*images[i][0], *embed(text)]])
        score = float(trainer.discriminator.discriminator.layers(pair).softmax(-1)[0, 1])
        return (1 - a.discriminator_weight) * total + a.discriminator_weight * score

    rewards = [[reward(i, text) for text in rollouts[i * per_image : (i + 1) * per_image]] for i in range(number)]
    pg = []
    for i in range(number):
        for k in range(per_image):
            baseline = 0.0
            if trainer.appraiser.baseline == "greedy":
                baseline = reward(i, greedy[i])
            elif trainer.appraiser.baseline == "leave_one_out":
                baseline = (sum(rewards[i]) - rewards[i][k]) / (per_image - 1)
            pg.append((rewards[i][k] - baseline) * log_prob(model, pixels[i], rows[i * per_image + k]))
    reference_rewards = [reward(i, text) for i in range(number) for text in references[i]]
    weigh = {
        "clamp": lambda r: max(r, 0.0),
        "shift": lambda r: r - min(reference_rewards),
        "raw": lambda r: r,
        "constant": lambda r: 1.0,
        "softmax": lambda r: len(reference_rewards) * math.exp(r) / sum(map(math.exp, reference_rewards)),
    }[a.wtf_policy]
    wtf = []
    for i in range(number):
        for g, row in enumerate(inputs["labels"][i].tolist()):
            tokens = [token for token in row if token != -100]
            wtf.append(weigh(reference_rewards[i * len(references[i]) + g]) * log_prob(model, pixels[i], tokens))
    parts = {"policy_gradient": -sum(pg) / len(pg), "weighted_teacher_forcing": -sum(wtf) / len(wtf)}
    loss = parts["policy_gradient"] + a.wtf_weight * parts["weighted_teacher_forcing"]
    if a.kl_weight:
        parts["kl"] = plain_kl(trainer, pixels, rows)
        loss += a.kl_weight * parts["kl"]
    return loss, parts


def plain_kl(trainer, pixels, rows):
    """Mean over all tokens of all rollouts of the divergence from the untouched captioner, from pixels."""
    divergences = []
    for n, tokens in enumerate(rows):
        labels = torch.tensor([tokens])
        one = pixels[n // trainer.args.num_rollouts][None]
        ours = trainer.model(pixel_values=one, labels=labels).logits[0].double().log_softmax(-1)
        theirs = trainer.untouched(pixel_values=one, labels=labels).logits[0].double().log_softmax(-1)
        divergences += (ours.exp() * (ours - theirs)).sum(-1).tolist()
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize(
    "settings",
    [
        {"wtf_policy": "raw"},
        {"pool_greedy": True, "pool_references": False, "wtf_policy": "shift", "discriminator_weight": 0.5},
        {"pool_neighbours": 2, "pool_own_rollouts": False, "references_per_image": 2, "wtf_policy": "softmax"},
        {"pool_other_captions": False, "reward_clamp": 0.01, "wtf_policy": "constant", "wtf_weight": 0.3},
        {"rollouts": "beam", "num_beams": 3, "pool_neighbours": 1, "wtf_policy": "raw"},
        {"reward": ["similarity"], "baseline": "greedy", "discriminator_weight": 0.0},
        {"reward": ["similarity"], "num_rollouts": 3, "temperature": 1.5, "references_per_image": 2},
        {"reward": ["cider"], "rollouts": "beam", "wtf_weight": 0.0},
        {"reward": ["contrastive", "test_trainer.brevity", "cider"], "reward_weights": [1.0, 0.5, 0.25]},
        {"kl_weight": 0.7, "wtf_policy": "raw"},
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()).replace("/", "_"),
)
def test_loss_of_one_batch_is_the_one_derived_from_pixels_and_strings(make_trainer, settings):
    trainer = make_trainer(**settings)
    if trainer.args.kl_weight:  # as after some steps: encoder and decoder are no longer the first ones
        trainer.untouched = copy.deepcopy(trainer.model).eval()
        torch.manual_seed(1)
        for parameter in trainer.model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    with torch.no_grad():  # a discriminator that has an opinion
        trainer.discriminator.discriminator.layers[-1].weight.mul_(30)
    inputs = a_batch(trainer)
    torch.manual_seed(5)
    expected, parts = plain_loss(trainer, inputs)
    torch.manual_seed(5)
    found = trainer.compute_loss(trainer.model.train(), inputs)
    assert found.item() == pytest.approx(expected, abs=2e-5)
    logs = trainer.meter.flush(trainer.accelerator)
    if trainer.args.wtf_weight == 0:
        assert "loss/weighted_teacher_forcing" not in logs
        del parts["weighted_teacher_forcing"]
    for name, value in parts.items():
        assert logs[f"loss/{name}" if name != "kl" else "kl"] == pytest.approx(value, abs=2e-5)
        assert abs(value) > 1e-4
    assert not any(part.training for part in (trainer.model, trainer.model.encoder, trainer.model.decoder))


def test_which_baseline_auto_takes(make_trainer):
    assert make_trainer().appraiser.baseline == "none"
    assert make_trainer(reward=["contrastive_i2t", "contrastive_t2i"]).appraiser.baseline == "none"
    assert make_trainer(reward=["contrastive", "cider"]).appraiser.baseline == "leave_one_out"
    assert make_trainer(reward=["cider"], num_rollouts=1).appraiser.baseline == "greedy"
    assert make_trainer(reward=["cider"], rollouts="beam").appraiser.baseline == "greedy"
    assert make_trainer(reward=["cider"], baseline="none").appraiser.baseline == "none"


def test_length_can_be_normalised_by_a_constant(make_trainer):
    """One policy-gradient batch in both ways: sums over 10 instead of means over each caption's own length."""
    trainer = make_trainer(wtf_weight=0.0, reward=["similarity"], baseline="none", discriminator_weight=0.0)
    inputs = a_batch(trainer)
    torch.manual_seed(5)
    rows, texts = plain_captions(trainer, inputs, do_sample=True, top_k=0, num_return_sequences=2, max_new_tokens=10)
    embeds = trainer.scorer.encode_texts(texts)
    rewards = (embeds * inputs["image_embeds"].repeat_interleave(2, dim=0)).sum(-1).tolist()
    trainer.args.length_normalization, trainer.args.max_new_tokens = "constant", 10
    torch.manual_seed(5)
    found = trainer.compute_loss(trainer.model, inputs).item()
    terms = [
        reward * len(row) / 10 * log_prob(trainer.model, inputs["pixel_values"][n // 2], row)
        for n, (reward, row) in enumerate(zip(rewards, rows, strict=True))
    ]
    assert found == pytest.approx(-sum(terms) / len(terms), abs=1e-5)
    assert len({len(row) for row in rows}) > 1


# ------------------------------------------------------------------------------------------------ what moves


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_what_should_move_moves_and_nothing_else(make_trainer, freeze_encoder):
    trainer = make_trainer(
        freeze_encoder=freeze_encoder, max_steps=2, kl_weight=0.1, wtf_policy="constant", discriminator_weight=0.06
    )
    parts = {
        "model": trainer.model,
        "scorer": trainer.scorer.model,
        "reference": trainer.reference_model,
        "discriminator": trainer.discriminator.discriminator,
    }
    before = {name: weights(part) for name, part in parts.items()}
    trainer.train()
    after = {name: moved(before[name], part) for name, part in parts.items()}
    trained = {name for name in before["model"] if not name.startswith("encoder." if freeze_encoder else POOLER)}
    assert after["model"] == trained and len(trained) > 20
    assert after["discriminator"] == set(before["discriminator"])
    assert after["scorer"] == after["reference"] == set()
    assert trainer.discriminator.steps == 2
    assert all(parameter.grad is None for parameter in trainer.scorer.model.parameters())
    assert all(parameter.grad is None for parameter in trainer.reference_model.parameters())


def test_without_its_weight_the_discriminator_rests(make_trainer):
    trainer = make_trainer(discriminator_weight=0.0, discriminator_pretrain_steps=2, max_steps=2)
    before = weights(trainer.discriminator.discriminator)
    trainer.train()
    assert moved(before, trainer.discriminator.discriminator) == set() and trainer.discriminator.steps == 0
    assert not [name for name in trainer.state.log_history[0] if "discriminator" in name]


def test_the_reward_takes_the_discriminators_score_from_before_its_step(make_trainer):
    trainer = make_trainer(discriminator_weight=1.0, discriminator_lr=0.5, baseline="none")
    inputs, before = a_batch(trainer), copy.deepcopy(trainer.discriminator.discriminator)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    torch.manual_seed(5)
    _, texts = plain_captions(trainer, inputs, do_sample=True, top_k=0, num_return_sequences=2)
    images, embeds = inputs["image_embeds"].repeat_interleave(2, dim=0), trainer.scorer.encode_texts(texts)
    logs = trainer.meter.flush(trainer.accelerator)
    expected, later = (d.score(images, embeds).mean() for d in (before, trainer.discriminator.discriminator))
    assert logs["reward/discriminator/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert logs["reward/total/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(float(expected) - float(later)) > 1e-3


def test_the_discriminator_is_pretrained_once_before_the_first_step(make_trainer):
    """Five updates (more than an epoch of three batches) and one a step; the captioner does not move meanwhile."""
    trainer = make_trainer(discriminator_pretrain_steps=5, max_steps=2, learning_rate=0.0, logging_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.discriminator.steps == 7
    assert moved(before, trainer.model) == set()


# ----------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("wtf_policy", ["clamp", "constant"])
def test_accumulating_four_batches_of_one_is_one_batch_of_four(make_trainer, tmp_path, wtf_policy):
    """Under SGD, which would show a gradient that is four times too long; Adam would not.

    The same captions by beam search. The reward is similarity, whose value does not depend on the rest of the batch:
    the contrastive one of a smaller batch has smaller pools, and must differ. The discriminator steps at every batch.
    """
    settings = {
        "rollouts": "beam", "num_beams": 2, "reward": ["similarity"], "discriminator_weight": 0.0, "max_steps": 3,
        "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.5, "wtf_policy": wtf_policy,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "4x1", **settings)
    parts = make_trainer(tmp_path / "1x4", **settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    before = weights(whole.model)
    for trainer in (whole, parts):
        trainer.train()
    assert len(whole.step_losses) == 3 and len(parts.step_losses) == 12
    sums = [sum(parts.step_losses[i : i + 4]) for i in (0, 4, 8)]
    assert sums == pytest.approx(whole.step_losses, abs=1e-5)
    assert all(abs(loss) > 1e-3 for loss in whole.step_losses)
    torch.testing.assert_close(weights(parts.model), weights(whole.model), atol=1e-5, rtol=1e-4)
    largest = max(float((weights(whole.model)[n] - before[n]).abs().max()) for n in before)
    assert largest > 1e-3


# ---------------------------------------------------------------------------------------- pools, memory, KL


def pools_of(trainer, steps=1):
    """The pools that the rewards of the last of some steps saw, through a reward that looks."""
    seen = []

    class Looking:
        name, is_advantage = "looking", True

        def __call__(self, batch):
            seen.append(batch)
            return torch.zeros(len(batch))

    trainer.appraiser.rewards.append(Looking())
    trainer.appraiser.reward_weights = [*trainer.appraiser.reward_weights, 1.0]
    for _ in range(steps):
        trainer.compute_loss(trainer.model, a_batch(trainer))
    return seen


def kinds(batch):
    return torch.bincount(batch.text_pool.kinds, minlength=4).tolist()


def test_pools_hold_the_batch(make_trainer):
    """4 images with 2 rollouts, 3 references and 1 greedy caption each, and 2 neighbours of each image."""
    (batch,) = pools_of(make_trainer(references_per_image=3, pool_greedy=True, pool_neighbours=2))
    assert kinds(batch) == [8, 12, 4, 0]
    assert len(batch) == 24 and len(batch.image_pool.embeds) == 4 + 8
    dataset = tiny.scenes()
    ids = [stable_hash(image_id) for image_id in dataset["image_id"]]
    assert batch.image_pool.image_ids[:4].tolist() == ids[:4]
    assert batch.text_pool.image_ids.tolist() == [i for n in (2, 3, 1) for i in ids[:4] for _ in range(n)]
    assert batch.text_pool.text_ids.tolist() == [stable_hash(text) for text in batch.captions]
    assert set(batch.image_pool.image_ids.tolist()) <= set(ids)
    assert batch.references[0] == dataset[0]["captions"]


def test_greedy_captions_are_written_only_where_they_are_needed(make_trainer):
    assert kinds(pools_of(make_trainer())[0]) == [8, 4, 0, 0]
    assert kinds(pools_of(make_trainer(reward=["similarity"], pool_greedy=True))[0]) == [8, 4, 0, 0]
    assert kinds(pools_of(make_trainer(reward=["similarity"], baseline="greedy"))[0]) == [8, 4, 4, 0]


@pytest.mark.parametrize(
    ("settings", "remembered"),
    [
        ({}, 8 + 4),  # rollouts and references
        ({"pool_references": False}, 8),
        ({"pool_greedy": True}, 8 + 4 + 4),
        ({"baseline": "greedy"}, 8 + 4),  # greedy captions are written, for the baseline alone
    ],
    ids=str,
)
def test_memory_keeps_the_last_batches_without_the_kinds_switched_off(make_trainer, settings, remembered):
    trainer = make_trainer(memory_batches=2, pool_neighbours=1, **settings)
    batches = pools_of(trainer, steps=4)
    assert [kinds(batch)[TextKind.MEMORY] for batch in batches] == [0, remembered, 2 * remembered, 2 * remembered]
    assert [len(batch.image_pool.embeds) for batch in batches] == [8, 16, 24, 24]
    first, second = batches[0].text_pool, batches[1].text_pool
    old = second.kinds == TextKind.MEMORY
    wanted = torch.zeros_like(first.kinds, dtype=torch.bool)
    for kind, on in (
        (TextKind.ROLLOUT, True),
        (TextKind.REFERENCE, trainer.args.pool_references),
        (TextKind.GREEDY, trainer.args.pool_greedy),
    ):
        wanted |= (first.kinds == kind) & on
    for name in ("embeds", "text_ids", "image_ids"):
        assert torch.equal(getattr(second, name)[old], getattr(first, name)[wanted])


def test_kl_is_zero_at_the_first_step_and_grows_with_the_distance(make_trainer):
    trainer = make_trainer(kl_weight=0.1, max_steps=3)
    trainer.train()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[1] > 1e-3 and kl[2] > 1e-3


def test_the_kl_term_holds_the_captioner_back(make_trainer, tmp_path):
    distances = {}
    for kl_weight in (1e-6, 5.0):
        trainer = make_trainer(tmp_path / str(kl_weight), kl_weight=kl_weight, max_steps=6, wtf_weight=0.0)
        trainer.train()
        distances[kl_weight] = trainer.state.log_history[5]["kl"]
    assert distances[5.0] < 0.7 * distances[1e-6]


# --------------------------------------------------------------------------------------------- own rewards


def test_a_function_of_ones_own_is_a_reward(make_trainer):
    trainer = make_trainer(rewards=[brevity], max_steps=1)
    assert trainer.appraiser.baseline == "leave_one_out"
    trainer.train()
    assert 0 < trainer.state.log_history[0]["reward/brevity/rollouts"] <= 1


def test_a_function_in_a_file_is_a_reward(make_trainer, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def long(captions, **kwargs):\n    return [float(len(caption)) for caption in captions]\n")
    trainer = make_trainer(reward=[f"{path}:long"], max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["reward/long/references"] > 5


def not_a_number(captions):
    return [math.nan if n == 1 else 0.5 for n, _ in enumerate(captions)]


def too_few(captions):
    return [0.5] * (len(captions) - 1)


class OfOnesOwn:
    is_advantage = True

    def __init__(self, name, values):
        self.name, self.values = name, values

    def __call__(self, batch):
        return self.values(len(batch))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (not_a_number, "reward 'not_a_number' gave nan for row 1, caption"),
        (too_few, r"reward 'too_few' gave 11 values for 12 captions: row 11 \(caption '.*'\) got none"),
        (OfOnesOwn("odd", lambda n: torch.full((n,), math.inf)), "reward 'odd' gave inf for row 0, caption '.*'"),
        (OfOnesOwn("short", lambda n: torch.zeros(n - 1)), r"reward 'short' gave shape \(11,\) instead of a tensor"),
        (OfOnesOwn("wide", lambda n: torch.zeros(n, 1)), r"reward 'wide' gave shape \(12, 1\) instead of a tensor"),
        (OfOnesOwn("lists", lambda n: [0.0] * n), "reward 'lists' gave list instead of a tensor of 12 numbers"),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "message")),
)
def test_a_reward_that_fails_is_a_clear_error(make_trainer, reward, message):
    trainer = make_trainer(rewards=[reward])
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_an_unknown_reward_is_an_error_with_the_nearest_name(make_trainer):
    with pytest.raises(ValueError, match="did you mean 'contrastive'"):
        make_trainer(reward=["contrastiv"])


def test_weights_that_do_not_match_the_rewards_are_an_error(make_trainer):
    with pytest.raises(ValueError, match="2 reward_weights for 1 rewards"):
        make_trainer(rewards=[brevity], reward=["contrastive", "cider"], reward_weights=[1.0, 2.0])


# --------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_is_the_same_run_to_the_bit(make_trainer, tmp_path, stop):
    """Six steps, two epochs of three batches; taken up in the middle of an epoch, and at its end."""
    settings = {
        "max_steps": 6, "memory_batches": 2, "pool_neighbours": 1, "kl_weight": 0.1, "discriminator_weight": 0.3,
        "discriminator_lr": 1e-2, "discriminator_pretrain_steps": 1, "lr_scheduler_type": "linear",
        "wtf_policy": "softmax", "references_per_image": 2, "save_strategy": "steps", "save_steps": stop,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "run", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "again", **settings)
    torch.rand(99)  # the random state, too, must come from the checkpoint
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert len(whole.step_losses) == 6
    assert resumed.step_losses == whole.step_losses[stop:]
    assert len(set(whole.step_losses)) == 6
    assert moved(weights(whole.model), resumed.model) == set()
    assert moved(weights(whole.discriminator.discriminator), resumed.discriminator.discriminator) == set()
    assert resumed.discriminator.steps == whole.discriminator.steps == 7
    assert len(whole.appraiser.memory) == len(resumed.appraiser.memory) == 2
    for ours, theirs in zip(whole.appraiser.memory, resumed.appraiser.memory, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) and len(ours) == 6


def test_a_checkpoint_of_another_trainer_is_taken_up_with_a_warning(make_trainer, tmp_path, caplog):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    (tmp_path / "run" / "checkpoint-1" / "rl_state.pt").unlink()
    again = make_trainer(max_steps=2)
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    finally:
        logging.disable_propagation()
    assert "rl_state.pt is missing: discriminator and memory start anew" in caplog.text


# ------------------------------------------------------------------------------------- captions and round trip

PIPELINE = """
import json, sys
from pathlib import Path
from transformers import pipeline
folder = Path(sys.argv[1])
captioner = pipeline("image-to-text", model=str(folder / "model"))
paths = sorted(str(path) for path in folder.glob("*.png"))
found = [captioner(path)[0]["generated_text"].strip() for path in paths]
assert not [name for name in sys.modules if name.startswith(("hf_distinct", "open_clip"))]
print(json.dumps(found))
"""


def test_a_saved_captioner_gives_the_same_captions_in_a_plain_pipeline(make_trainer, tmp_path):
    dataset = tiny.scenes()
    trainer = make_trainer(max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    captions = trainer.caption(dataset)
    assert len(set(captions)) > 1 and all(captions)
    for number, picture in enumerate(dataset["image"]):
        picture.save(tmp_path / f"{number:02}.png")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(tmp_path)],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == captions


def test_captions_do_not_depend_on_the_batch_they_are_written_in(make_trainer):
    dataset = tiny.scenes(5)
    captions = [make_trainer(per_device_eval_batch_size=size).caption(dataset) for size in (1, 2, 5)]
    assert captions[0] == captions[1] == captions[2] and len(captions[0]) == 5


def test_pictures_of_any_mode_and_size_are_captioned(make_trainer, tmp_path):
    pictures = {"L": (1, 1), "RGBA": (3, 40), "CMYK": (50, 20), "P": (9, 1)}
    files = [str(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}") for mode in pictures]
    for file, (mode, size) in zip(files, pictures.items(), strict=True):
        Image.new(mode, size).save(file)
    dataset = Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())
    assert len(make_trainer().caption(dataset)) == 4


def test_evaluate_gives_the_metrics_of_the_captions(make_trainer):
    dataset = tiny.scenes(5)

    def measure(captions, data):
        assert len(captions) == len(data)
        return {"words": sum(len(caption.split()) for caption in captions) / len(captions)}

    trainer = make_trainer(caption_metrics=measure, eval_dataset={"a": dataset, "b": dataset.select([0])})
    captions = trainer.caption(dataset)
    words = [len(caption.split()) for caption in captions]
    assert trainer.evaluate() == {"eval_a_words": sum(words) / 5, "eval_b_words": words[0]}
    assert trainer.evaluate(dataset, metric_key_prefix="test") == {"test_words": sum(words) / 5}
    with pytest.raises(ValueError, match="needs an eval_dataset and caption_metrics"):
        make_trainer().evaluate()


def test_evaluation_within_training_does_not_change_it(make_trainer, tmp_path):
    settings = {"max_steps": 3, "caption_metrics": lambda captions, _: {"n": len(captions)}}
    without = make_trainer(tmp_path / "a", **settings)
    without.train()
    within = make_trainer(tmp_path / "b", **settings, eval_dataset=tiny.scenes(3), eval_strategy="steps", eval_steps=1)
    within.train()
    assert within.step_losses == without.step_losses
    assert [line["eval_n"] for line in within.state.log_history if "eval_n" in line] == [3, 3, 3]


# --------------------------------------------------------------------------------------------------- the log


def test_what_a_log_line_says(make_trainer):
    trainer = make_trainer(kl_weight=0.1, reward=["contrastive", "cider"], max_steps=1, num_rollouts=3)
    trainer.train()
    line = trainer.state.log_history[0]
    rewards = [f"reward/{name}" for name in ("contrastive", "cider", "discriminator", "total")]
    expected = {
        f"{name}/{whose}{what}" for name in rewards for whose in ("rollouts", "references") for what in ("", "_std")
    }
    expected |= {"discriminator/loss", "discriminator/accuracy", "kl", "length", "ended", "unique", "reference_weight"}
    expected |= {"loss", "loss/policy_gradient", "loss/weighted_teacher_forcing"}
    expected |= {f"time/{name}" for name in ("encode", "generate", "reward", "score", "backward", "step")}
    assert expected <= set(line)
    assert all(math.isfinite(line[name]) for name in expected)
    assert 0 <= line["ended"] <= 1 and 0 < line["unique"] <= 1 and 1 <= line["length"] <= tiny.MAX_LENGTH
    assert not [name for name in line if "greedy" in name]


def test_the_figures_of_a_log_line_are_those_of_the_captions(make_trainer):
    trainer = make_trainer(num_rollouts=3)
    inputs = a_batch(trainer)
    torch.manual_seed(5)
    rows, texts = plain_captions(trainer, inputs, do_sample=True, top_k=0, num_return_sequences=3)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    logs = trainer.meter.flush(trainer.accelerator)
    end = trainer.processing_class.eos_token_id
    assert logs["length"] == pytest.approx(sum(map(len, rows)) / len(rows))
    assert logs["ended"] == pytest.approx(sum(row[-1] == end for row in rows) / len(rows))
    assert logs["unique"] == pytest.approx(len(set(texts)) / len(texts))
    assert trainer._samples == [(texts[3 * i], inputs["captions"][i][0]) for i in range(4)]


# ------------------------------------------------------------------------------------------------- bad input


def new_trainer(tiny_models, tmp_path, change=lambda model, tokenizer: None, model=None, **settings):
    captioner, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    change(captioner, tokenizer)
    return RLCaptionTrainer(
        captioner if model is None else model,
        RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True, **settings),
        scorer=ClipScorer(str(tiny_models / "scorer")),
        train_dataset=tiny.scenes(),
        processing_class=tokenizer,
        image_processor=image_processor,
    )


def without_start(model, tokenizer):
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None


def without_end(model, tokenizer):
    tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_start, "The captioner has no decoder_start_token_id. Set model.config.decoder_start_token_id"),
        (without_end, "The captioner needs a tokenizer with an end token"),
    ],
)
def test_a_captioner_that_lacks_something_is_a_clear_error(tiny_models, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        new_trainer(tiny_models, tmp_path, change)


def test_a_model_that_is_no_captioner_is_a_clear_error(tiny_models, tmp_path):
    decoder = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    with pytest.raises(ValueError, match="must be a VisionEncoderDecoderModel, not a GPT2LMHeadModel"):
        new_trainer(tiny_models, tmp_path, model=decoder)


def test_a_scorer_that_does_not_exist_is_a_clear_error(tiny_models, tmp_path):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    with pytest.raises(ValueError, match="Scorer '.*nowhere' is neither a folder with an open_clip model nor"):
        RLCaptionTrainer(
            model, RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True), scorer=str(tmp_path / "nowhere"),
            train_dataset=tiny.scenes(), processing_class=tokenizer, image_processor=image_processor,
        )  # fmt: skip


def test_a_batch_of_one_has_nothing_to_contrast_with(make_trainer):
    with pytest.raises(ValueError, match="the batch has one image: raise per_device_train_batch_size"):
        make_trainer(per_device_train_batch_size=1)


@pytest.mark.parametrize(
    "settings", [{"pool_neighbours": 1}, {"memory_batches": 1}, {"reward": ["similarity"]}], ids=str
)
def test_a_batch_of_one_works_where_it_has(make_trainer, settings):
    trainer = make_trainer(per_device_train_batch_size=1, max_steps=2, **settings)
    trainer.train()
    assert all(math.isfinite(loss) for loss in trainer.step_losses) and len(trainer.step_losses) == 2


def test_a_batch_larger_than_the_data_is_a_clear_error(make_trainer):
    with pytest.raises(ValueError, match="12 training images do not fill one batch of 13"):
        make_trainer(per_device_train_batch_size=13)


def test_a_decoder_has_only_so_many_positions(make_trainer):
    """16: longer rollouts are an error where they are asked for, longer references are cut."""
    with pytest.raises(ValueError, match="max_new_tokens=17, but the decoder has only 16 positions"):
        make_trainer(max_new_tokens=17)
    dataset = tiny.scenes().map(lambda row: {"captions": [caption * 9 for caption in row["captions"]]})
    trainer = make_trainer(max_new_tokens=16, max_reference_length=50, dataset=dataset)
    trainer.train()
    assert a_batch(trainer)["labels"].shape[-1] == 16
