"""The loss on real, tiny models (see tiny.py), against values derived from pixels and strings in plain Python.

Then what a step moves and what holds it back, and rewards of one's own, good and bad.
"""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper
from transformers.utils import logging

from hf_distinct.data.images import decode_image
from hf_distinct.evaluation.captions import CiderD
from hf_distinct.generation.greedy import GreedyRows
from hf_distinct.rewards import TextKind

POOLER = "encoder.pooler."  # a part of stock ViT that no captioner uses


def brevity(captions, references, scene, **columns):
    """Rewards short captions; sees every column."""
    assert len(captions) == len(references) == len(scene) == len(columns["image_id"])
    assert all("background" in facts for facts in scene)
    return [1.0 / (1 + len(caption.split())) for caption in captions]


# ------------------------------------------------------------------------------------- the loss, derived once more


def log_prob(model, pixels, tokens, temperature=1.0):
    """Mean log-probability of a caption's tokens: from pixels, the caption alone, at a temperature.

    Not from the model's own loss: in transformers 4.57 it shifts the labels twice (huggingface/transformers#40111).
    """
    logits = model(pixel_values=pixels[None], labels=torch.tensor([tokens])).logits[0]
    return (logits / temperature).log_softmax(-1)[range(len(tokens)), tokens].mean().item()


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
    temperature = a.temperature if a.rollouts == "sample" else 1.0
    pixels, number = inputs["pixel_values"], len(inputs["pixel_values"])
    memo = {}

    def embed(text):
        if text not in memo:
            memo[text] = scorer.encode_texts([text])[0].tolist()
        return memo[text]

    trainer.embed = embed
    if a.rollouts == "beam":
        how = {"num_beams": a.num_beams, "no_repeat_ngram_size": a.no_repeat_ngram_size}
        how["num_return_sequences"] = a.num_rollouts
    else:
        how = {"samples": a.num_rollouts, "processors": [TemperatureLogitsWarper(a.temperature)]}
    if trainer.appraiser.needs_greedy and a.rollouts == "sample":  # drawn beside the samples, as their last row
        how["samples"] += 1
        how["processors"].append(GreedyRows(how["samples"], LogitsProcessorList()))
    per_image, references = a.num_rollouts, inputs["captions"]
    rows, rollouts = tiny.plain_captions(trainer, inputs, **how)
    drawn = [n for n in range(len(rows)) if n % (len(rows) // number) < per_image]
    rows, rollouts = [rows[n] for n in drawn], [rollouts[n] for n in drawn]
    _, greedy = tiny.plain_captions(trainer, inputs)

    def vector(picture):
        return scorer.encode_images(scorer.transform(decode_image(picture))[None])[0].tolist()

    dataset = trainer.train_dataset
    images = [(vector(dataset[i]["image"]), dataset[i]["image_id"]) for i in range(number)]
    if a.pool_neighbours:
        near = [row for i in range(number) for row in dataset[i]["neighbours"]]
        images += [(vector(dataset[row]["image"]), dataset[row]["image_id"]) for row in near]
    texts = [(text, TextKind.ROLLOUT, n // per_image) for n, text in enumerate(rollouts)]
    texts += [(text, TextKind.REFERENCE, i) for i in range(number) for text in references[i]]
    texts += [(text, TextKind.GREEDY, i) for i, text in enumerate(greedy)]
    corpus = CiderD([list(row) for row in dataset["captions"]], end_token=True)

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
            pg.append((rewards[i][k] - baseline) * log_prob(model, pixels[i], rows[i * per_image + k], temperature))
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
            weight = weigh(reference_rewards[i * len(references[i]) + g])
            wtf.append(weight * log_prob(model, pixels[i], tokens, temperature))
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
        ours, theirs = (
            (model(pixel_values=one, labels=labels).logits[0].double() / trainer.args.temperature).log_softmax(-1)
            for model in (trainer.model, trainer.untouched)
        )
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
        {"kl_weight": 0.7, "wtf_policy": "raw", "temperature": 0.7},
        {"rollouts": "beam", "num_rollouts": 1, "num_beams": 2, "temperature": 0.5, "wtf_policy": "raw"},
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
    inputs = tiny.a_batch(trainer)
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
    assert make_trainer().appraiser.baseline == "leave_one_out"
    assert make_trainer(rollouts="beam", num_rollouts=1).appraiser.baseline == "none"  # the paper
    assert make_trainer(reward=["contrastive_i2t", "contrastive_t2i"], num_rollouts=1).appraiser.baseline == "none"
    assert make_trainer(reward=["contrastive", "cider"], num_rollouts=1).appraiser.baseline == "greedy"
    assert make_trainer(reward=["cider"], num_rollouts=1).appraiser.baseline == "greedy"
    assert make_trainer(reward=["cider"], rollouts="beam", num_rollouts=1).appraiser.baseline == "greedy"
    assert make_trainer(reward=["cider"], baseline="none").appraiser.baseline == "none"


def test_length_can_be_normalised_by_a_constant(make_trainer):
    """One policy-gradient batch in both ways: sums over 10 instead of means over each caption's own length."""
    trainer = make_trainer(wtf_weight=0.0, reward=["similarity"], baseline="none", discriminator_weight=0.0)
    inputs = tiny.a_batch(trainer)
    torch.manual_seed(5)
    rows, texts = tiny.plain_captions(trainer, inputs, samples=2, max_new_tokens=10)
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
    before = {name: tiny.weights(part) for name, part in parts.items()}
    trainer.train()
    after = {name: tiny.moved(before[name], part) for name, part in parts.items()}
    trained = {name for name in before["model"] if not name.startswith("encoder." if freeze_encoder else POOLER)}
    assert after["model"] == trained and len(trained) > 20
    assert after["discriminator"] == set(before["discriminator"])
    assert after["scorer"] == after["reference"] == set()
    assert trainer.discriminator.steps == 2
    assert all(parameter.grad is None for parameter in trainer.scorer.model.parameters())
    assert all(parameter.grad is None for parameter in trainer.reference_model.parameters())


def test_without_its_weight_the_discriminator_rests(make_trainer):
    trainer = make_trainer(discriminator_weight=0.0, discriminator_pretrain_steps=2, max_steps=2)
    before = tiny.weights(trainer.discriminator.discriminator)
    trainer.train()
    assert tiny.moved(before, trainer.discriminator.discriminator) == set() and trainer.discriminator.steps == 0
    assert not [name for name in trainer.state.log_history[0] if "discriminator" in name]


def test_the_reward_takes_the_discriminators_score_from_before_its_step(make_trainer):
    trainer = make_trainer(discriminator_weight=1.0, discriminator_lr=0.5, baseline="none")
    inputs, before = tiny.a_batch(trainer), copy.deepcopy(trainer.discriminator.discriminator)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    torch.manual_seed(5)
    _, texts = tiny.plain_captions(trainer, inputs, samples=2)
    images, embeds = inputs["image_embeds"].repeat_interleave(2, dim=0), trainer.scorer.encode_texts(texts)
    logs = trainer.meter.flush(trainer.accelerator)
    expected, later = (d.score(images, embeds).mean() for d in (before, trainer.discriminator.discriminator))
    assert logs["reward/discriminator/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert logs["reward/total/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(float(expected) - float(later)) > 1e-3


def test_the_discriminator_is_pretrained_once_before_the_first_step(make_trainer):
    """Five updates (more than an epoch of three batches) and one a step; the captioner does not move meanwhile."""
    trainer = make_trainer(discriminator_pretrain_steps=5, max_steps=2, learning_rate=0.0, logging_steps=2)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert trainer.discriminator.steps == 7
    assert tiny.moved(before, trainer.model) == set()


def test_how_well_the_discriminator_learned_before_is_told(make_trainer, caplog):
    trainer = make_trainer(discriminator_pretrain_steps=60, discriminator_lr=1e-2)
    logging.enable_propagation()
    caplog.set_level("INFO", logger="hf_distinct.trainer")
    try:
        trainer.train()
    finally:
        logging.disable_propagation()
    told = trainer.state.log_history[0]
    assert told["discriminator/pretrain_steps"] == 60 and told["step"] == 0
    assert told["discriminator/pretrain_accuracy"] > 0.6
    begun, done = (line for line in caplog.messages if "discriminator" in line)
    assert begun == "Pre-training the discriminator for 60 steps (discriminator_pretrain_steps)."
    assert done.startswith("The discriminator now tells ") and done.endswith(" % of rollouts from reference captions.")


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
    before = tiny.weights(whole.model)
    for trainer in (whole, parts):
        trainer.train()
    assert len(whole.step_losses) == 3 and len(parts.step_losses) == 12
    sums = [sum(parts.step_losses[i : i + 4]) for i in (0, 4, 8)]
    assert sums == pytest.approx(whole.step_losses, abs=1e-5)
    assert all(abs(loss) > 1e-3 for loss in whole.step_losses)
    torch.testing.assert_close(tiny.weights(parts.model), tiny.weights(whole.model), atol=1e-5, rtol=1e-4)
    largest = max(float((tiny.weights(whole.model)[n] - before[n]).abs().max()) for n in before)
    assert largest > 1e-3


# ---------------------------------------------------------------------------------------------------- KL


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
    return ["0.5" if n == 1 else 0.5 for n, _ in enumerate(captions)]


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
        (not_a_number, "reward 'not_a_number' returned '0.5' for row 1, caption"),
        (too_few, r"reward 'too_few' returned 11 values for 12 captions: row 11 \(caption '.*'\) has none"),
        (OfOnesOwn("short", lambda n: torch.zeros(n - 1)), r"'short' returned shape \(11,\) instead of a tensor"),
        (OfOnesOwn("wide", lambda n: torch.zeros(n, 1)), r"'wide' returned shape \(12, 1\) instead of a tensor"),
        (OfOnesOwn("lists", lambda n: [0.0] * n), "reward 'lists' returned list instead of a tensor of 12 numbers"),
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
