"""The scorer that is trained with the captioner: its loss by hand, its steps, its average, and what is saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812

from hf_distinct import ClipScorer
from hf_distinct.rewards.scorer_trainer import GlobalBatch, ScorerTrainer, scorer_losses

TRAINED = {"train_scorer": "text", "scorer_lr": 1e-3, "scorer_decay": 0.5, "scorer_loss_weights": [1.0, 1.0, 0.5, 1.0]}


def batch(**changes) -> GlobalBatch:
    """Two images on the axes, a neighbour between them, one reference and one rollout each."""
    rows = {
        "images": [[1.0, 0.0], [0.0, 1.0]], "image_ids": [1, 2], "negatives": [[0.6, 0.8]], "negative_ids": [3],
        "references": [[[0.8, 0.6]], [[0.0, 1.0]]], "rollouts": [[[1.0, 0.0]], [[0.6, 0.8]]],
        "same": [[[False]], [[False]]], "anchors": [[[1.0, 0.0]], [[0.0, 1.0]]],
    } | changes  # fmt: skip
    return GlobalBatch(**{name: torch.tensor(value) for name, value in rows.items()})


def log_odds(own: float, *others: float) -> float:
    """- log of the softmax of the first number."""
    return math.log(sum(math.exp(each) for each in (own, *others))) - own


def test_the_terms_worked_out_by_hand():
    terms = scorer_losses(batch(), torch.tensor(2.0))
    # Twice the cosines: the references with the images 1.6, 1.2 | 0, 2, with the neighbour 1.92 | 1.6.
    to_images = (log_odds(1.6, 1.2, 1.92) + log_odds(2.0, 0.0, 1.6)) / 2
    to_captions = (log_odds(1.6, 0.0) + log_odds(2.0, 1.2)) / 2
    assert terms["people"].item() == pytest.approx((to_images + to_captions) / 2)
    # A rollout of the first image has 2 with it, where its reference has 1.6; of the second 1.6, where that has 2.
    assert terms["lies"].item() == pytest.approx((log_odds(1.6, 2.0) + log_odds(2.0, 1.6)) / 2)
    assert terms["anchor"].item() == pytest.approx((1 - 0.8 + 0) / 2)
    to_images = (log_odds(2.0, 0.0, 1.2) + log_odds(1.6, 1.2, 2.0)) / 2
    to_captions = (log_odds(2.0, 1.2) + log_odds(1.6, 0.0)) / 2
    assert terms["coop"].item() == pytest.approx((to_images + to_captions) / 2)


def test_a_rollout_that_people_wrote_too_is_no_lie():
    alone = scorer_losses(batch(same=[[[True]], [[False]]]), torch.tensor(2.0))
    assert alone["lies"].item() == pytest.approx(log_odds(2.0, 1.6))
    assert scorer_losses(batch(same=[[[True]], [[True]]]), torch.tensor(2.0))["lies"] == 0


def test_a_neighbour_that_is_an_image_of_the_batch_is_no_negative_of_its_own_captions():
    copied = batch(negatives=[[1.0, 0.0]], negative_ids=[1])
    terms = scorer_losses(copied, torch.tensor(2.0))
    to_images = (log_odds(1.6, 1.2) + log_odds(2.0, 0.0, 0.0)) / 2
    to_captions = (log_odds(1.6, 0.0) + log_odds(2.0, 1.2)) / 2
    assert terms["people"].item() == pytest.approx((to_images + to_captions) / 2)


@pytest.fixture
def scorer(tiny_models):
    return ClipScorer(tiny_models / "scorer")


def inputs_of(scorer: ClipScorer, images: int = 4) -> dict:
    """A batch of scenes with two references each; a neighbour of each but the first is the image before it."""
    dataset = tiny.scenes(images)
    captions = [row[:2] for row in dataset["captions"]]
    texts = scorer.encode_texts([text for row in captions for text in row])
    pixels = torch.stack([scorer.transform(each) for each in dataset["image"]])
    embeds, ids = scorer.encode_images(pixels), torch.arange(images)
    return {
        "captions": captions, "caption_embeds": texts.view(images, 2, -1),
        "image_embeds": embeds, "image_ids": ids, "neighbour_mask": (ids > 0)[:, None],
        "neighbour_embeds": embeds.roll(1, 0)[:, None], "neighbour_ids": ids.roll(1)[:, None],
    }  # fmt: skip


def test_a_step_is_that_of_the_whole_loss(scorer):
    """The gradient through gathered embeddings is the gradient of the loss; the first step of Adam has its signs."""
    inputs, rollouts = inputs_of(scorer), [f"a dog and {n} cats" for n in range(8)]
    weights = (1.0, 2.0, 0.5, 3.0)
    trainer = ScorerTrainer(scorer, Accelerator(cpu=True), 2, lr=1e-3, decay=0.9, weights=weights)
    plain = ScorerTrainer(scorer, Accelerator(cpu=True), 2, lr=1e-3, weights=weights)
    texts = F.normalize(plain.student.encode_text(scorer.tokenize([*sum(inputs["captions"], []), *rollouts])), dim=-1)
    whole = GlobalBatch(
        inputs["image_embeds"], inputs["image_ids"], inputs["image_embeds"][:3], inputs["image_ids"][:3],
        texts[:8].view(4, 2, -1), texts[8:].view(4, 2, -1), torch.zeros(4, 2, 2, dtype=torch.bool),
        inputs["caption_embeds"],
    )  # fmt: skip
    terms = scorer_losses(whole, plain.student.logit_scale.exp())
    sum(weight * term for weight, term in zip(weights, terms.values(), strict=True)).backward()
    terms = {name: term.item() for name, term in terms.items()}
    gradients = {name: weight.grad for name, weight in plain.trained.items() if weight.grad is not None}
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    figures = trainer.update(inputs, rollouts)
    for name, gradient in gradients.items():
        torch.testing.assert_close(trainer.trained[name].grad, gradient / max(1.0, norm + 1e-6), atol=1e-6, rtol=1e-3)
    assert {name: float(value) for name, value in figures.items() if name in terms} == pytest.approx(terms, rel=1e-4)


def test_rewards_come_from_the_average_and_the_given_scorer_stays(scorer):
    before = {name: value.clone() for name, value in scorer.model.state_dict().items()}
    trainer = ScorerTrainer(scorer, Accelerator(cpu=True), 1, lr=1e-2, decay=0.75)
    trainer.update(inputs_of(scorer), ["a dog", "a cat", "a dog", "a big cat"])
    average, student = trainer.scorer.model.state_dict(), trainer.student.state_dict()
    moved = {name for name, value in student.items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("visual.") for name in moved) and "logit_scale" in moved
    for name in moved:
        torch.testing.assert_close(average[name], 0.75 * before[name] + 0.25 * student[name])
    assert trainer.scorer.logit_scale == pytest.approx(float(average["logit_scale"].exp()))
    assert all(torch.equal(value, before[name]) for name, value in scorer.model.state_dict().items())
    inputs = inputs_of(scorer)
    refreshed = trainer.refreshed(inputs)["caption_embeds"]
    texts = [text for row in inputs["captions"] for text in row]
    assert torch.allclose(refreshed.flatten(0, 1), trainer.scorer.encode_texts(texts), atol=1e-6)
    assert not torch.allclose(refreshed, inputs["caption_embeds"])


def test_peoples_captions_come_to_beat_false_ones_and_the_anchor_holds(scorer):
    inputs, rollouts = inputs_of(scorer), ["a dog left of a cat"] * 4
    found = []
    for anchor in (0.0, 20.0):
        trainer = ScorerTrainer(scorer, Accelerator(cpu=True), 1, lr=1e-3, decay=0.0, weights=(0, 1, 0, anchor))
        figures = [trainer.update(inputs, rollouts) for _ in range(20)]
        found.append({name: float(value) for name, value in figures[-1].items()})
        assert found[-1]["lies"] < 0.8 * figures[0]["lies"]
    assert found[1]["anchor"] < 0.8 * found[0]["anchor"]


def test_a_loss_that_is_not_finite_changes_nothing_and_the_scale_stays_below_100(scorer):
    trainer = ScorerTrainer(scorer, Accelerator(cpu=True), 1, lr=1.0)
    before = {name: weight.clone() for name, weight in trainer.trained.items()}
    inputs, rollouts = inputs_of(scorer), ["a dog"] * 4
    trainer.update(inputs | {"image_embeds": inputs["image_embeds"] * math.nan}, rollouts)
    assert trainer.steps == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.trained.items())
    for start in (5.0, -2.0):  # as a step might leave it
        trainer.student.logit_scale.data.fill_(start)
        trainer.update(inputs, rollouts)
        assert -1e-6 <= trainer.student.logit_scale.item() <= math.log(100) + 1e-6


def test_references_are_embedded_by_the_scorer_as_it_is_now(make_trainer):
    trainer = make_trainer(memory_batches=1, **TRAINED)
    appraiser, inputs = trainer.appraiser, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    torch.nn.init.normal_(appraiser.scorer.model.token_embedding.weight)
    texts = [text for row in inputs["captions"] for text in row]
    embeds = appraiser.scorer.encode_texts(texts)  # before the update that follows the rewards
    appraiser.judge(inputs, ["a dog"] * len(texts) * trainer.args.num_rollouts, [])
    remembered = appraiser.pools.memory[0]["text_embeds"]
    assert torch.allclose(remembered[-len(texts) :], embeds, atol=1e-5)


def test_the_anchor_is_the_scorer_before_the_training(make_trainer):
    trainer = make_trainer(
        max_steps=3, logging_steps=1, train_scorer="text", scorer_lr=0.01, scorer_decay=0.0,
        scorer_loss_weights=[0.0, 1.0, 0.0, 0.0],
    )  # fmt: skip
    trainer.train()
    anchors = [line["scorer/anchor"] for line in trainer.state.log_history if "scorer/anchor" in line]
    assert anchors[0] == pytest.approx(0, abs=1e-5) and anchors[2] > anchors[1] > 1e-3


def a_step(models: Path, accelerator: Accelerator, rows: slice) -> dict[str, torch.Tensor]:
    """A step on some of four images: the gradients, and what is logged."""
    scorer = ClipScorer(models / "scorer")
    inputs = {name: value[rows] for name, value in inputs_of(scorer).items()}
    rollouts = [f"a dog and {n} cats" for n in range(8)][2 * rows.start : 2 * rows.stop]
    trainer = ScorerTrainer(scorer, accelerator, 2, weights=(1.0, 2.0, 0.5, 3.0))
    figures = trainer.update(inputs, rollouts)
    return {name: weight.grad for name, weight in trainer.trained.items() if weight.grad is not None} | figures


def test_two_processes_take_the_step_of_one(tiny_models, tmp_path, run_processes):
    script = Path(__file__).parents[1] / "distributed" / "scorer_in_two.py"
    run_processes(str(script), [tiny_models, tmp_path], [tiny_models, tmp_path])
    whole = a_step(tiny_models, Accelerator(cpu=True), slice(0, 4))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == whole.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.both_ends
def test_a_resumed_run_is_the_same_run_and_saves_the_average(make_trainer, tmp_path):
    settings = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "references_per_image": 2, "pool_neighbours": 1,
        "memory_batches": 1, "discriminator_pretrain_steps": 1, **TRAINED,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "run", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.step_losses == whole.step_losses[2:] and len(set(whole.step_losses)) == 4
    for part in ("student", "average"):
        ours, theirs = (each.appraiser.scorer_trainer.state_dict()[part] for each in (whole, resumed))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    saved = ClipScorer(tmp_path / "run" / "checkpoint-4" / "scorer")
    average = whole.appraiser.scorer
    assert torch.allclose(saved.encode_texts(["a dog"]), average.encode_texts(["a dog"]), atol=1e-2)
    assert saved.fingerprint != whole.scorer.fingerprint
    logged = whole.state.log_history[-2] | whole.state.log_history[-1]
    assert {"scorer/people", "scorer/lies", "scorer/coop", "scorer/anchor", "scorer/logit_scale"} <= set(logged)


def test_the_best_scorer_is_restored_with_the_best_captioner(make_trainer, tmp_path):
    found = iter([3.0, 2.0])
    trainer = make_trainer(
        eval_dataset=tiny.scenes(2), caption_metrics=lambda *_: {"x": next(found)}, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="x",
        max_steps=2, **TRAINED,
    )  # fmt: skip
    trainer.train()
    best = ClipScorer(tmp_path / "run" / "checkpoint-1" / "scorer")
    now = trainer.appraiser.scorer
    assert torch.equal(now.encode_texts(["a dog"]), best.encode_texts(["a dog"]))
    assert now.logit_scale == best.logit_scale
