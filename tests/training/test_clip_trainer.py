"""The steps of a CLIP's training: resumed to the bit, towers that thaw, the best kept, and several processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from clips import IMAGE_TOWER, build
from clips import towers as towers

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.tower_features import CaptionTokens, tower_features
from hf_distinct.files import checkpoints
from hf_distinct.training import clip_trainer
from hf_distinct.training.clip_building import FrozenText, TrainedClip, image_tower_of, small_clip, text_tower_of
from hf_distinct.training.clip_trainer import ALWAYS, ClipTrainer, Schedule
from hf_distinct.training.clip_training import EMOJI_RULES, CaptionedImages

SCHEDULE = {"max_steps": 7, "batch_size": 8, "lr": 1e-2, "tower_lr": 1e-3, "weight_decay": 0.1, "eval_steps": 3,
            "negative_weight": 1.0}  # fmt: skip
THAWING = {"image_frozen_steps": 5, "image_thawed_stages": 2, "text_frozen_steps": 2, "cached": True}
SCENES = emoji_scenes("train", 24, seed=0)  # three batches: steps 4 and 7 begin a pass


def make(
    towers: Path, output: Path, cached: bool = False, measure=lambda step: 0.0, save=lambda: None, k: int = 1,
    texts: bool = False, **settings,
):  # fmt: skip
    """A trainer of a small CLIP with dropout and negatives, on pictures or, until the image tower thaws, features.

    With `texts`, the first stage also reads features of its captions.
    """
    torch.manual_seed(0)
    clip = build(towers)
    schedule = Schedule(**{**SCHEDULE, "pretrained": ["image", "text"], **settings})
    how = (EMOJI_RULES, EMOJI_RULES.weights, 0.5)
    views = clip.views({"scale": [0.5, 1]}, mirror=True)
    stages = [(CaptionedImages(SCENES, views, *how, captions_per_image=k), schedule.max_steps)]
    if cached:
        (tower,) = image_tower_of(clip.model, schedule.image_thawed_stages).modules
        views = clip.views(mirror=True, count=2)
        kept, features = tower_features(SCENES, tower.eval(), views, output / "features")
        until = schedule.max_steps if schedule.image_frozen_steps == ALWAYS else schedule.image_frozen_steps
        known = None
        if texts:
            tokens = CaptionTokens(clip.tokenize, max(map(len, SCENES["captions"])))
            _, known = tower_features(SCENES, FrozenText(clip.model).eval(), tokens, output / "features")
        stages.insert(0, (CaptionedImages(kept, views, *how, features, k, known), until))
    return clip, ClipTrainer(clip, schedule, stages, str(output), measure, save, keep_best=True)


def state(clip: TrainedClip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.model.state_dict().items()}


@pytest.mark.both_ends
@pytest.mark.parametrize("stop", [2, 3, 5, 6])
@pytest.mark.parametrize("settings", [{}, THAWING, {**THAWING, "text_frozen_steps": ALWAYS, "texts": True, "k": 2}])
def test_a_stopped_run_goes_on_to_the_bit(towers, tmp_path, monkeypatch, settings, stop):
    whole, trainer = make(towers, tmp_path / "whole", **settings)
    assert trainer.train() == 0 and trainer.place.step == 7
    plain, calls = clip_trainer.loss_of, []

    def loss_of(*args):
        calls.append(args)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain(*args)

    monkeypatch.setattr(clip_trainer, "loss_of", loss_of)
    _, trainer = make(towers, tmp_path / "cut", **settings)
    assert trainer.train() == signal.SIGUSR1 and trainer.place.step == stop
    cut, trainer = make(towers, tmp_path / "cut", **settings)
    torch.manual_seed(99)
    trainer.resume(checkpoints.choose("true", tmp_path / "cut"))
    assert trainer.train() == 0 and len(calls) == 7
    assert all(torch.equal(value, state(cut)[name]) for name, value in state(whole).items())
    trainer.remove_checkpoints()
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


def test_a_full_disk_is_found_before_the_first_step(towers, tmp_path, monkeypatch):
    _, trainer = make(towers, tmp_path, text_frozen_steps=ALWAYS)
    trained = sum(each.numel() for each in trainer.model.parameters())
    trained -= sum(each.numel() for each in text_tower_of(trainer.model).parameters)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 24 * trained})())
    with pytest.raises(OSError, match="No space left: The model and two checkpoints will need about"):
        trainer.train()
    assert trainer.place.step == 0


def test_other_settings_are_not_resumed(towers, tmp_path):
    make(towers, tmp_path, max_steps=3)[1].train()
    _, trainer = make(towers, tmp_path, max_steps=5, lr=0.5)
    with pytest.raises(ValueError, match=r"cannot be resumed: .* max_steps=3 \(now 5\), lr=0.01 \(now 0.5\)\. Use"):
        trainer.resume(checkpoints.choose("true", tmp_path))


def test_each_tower_thaws_at_its_step_and_learns_at_its_rate(towers, tmp_path):
    seen = []

    def measure(step):
        seen.append(state(clip))
        return 0.0

    how = {"image_frozen_steps": 2, "text_frozen_steps": ALWAYS, "eval_steps": 1, "max_steps": 3, "tower_lr": 1e-4}
    clip, trainer = make(towers, tmp_path, measure=measure, **how)
    start = state(clip)
    trainer.train()

    def change(before, after, part):
        return max((after[name] - value).abs().max().item() for name, value in before.items() if part in name)

    for step in (0, 1):
        assert change(start, seen[step], "visual.trunk") == 0 and change(start, seen[step], "visual.head") > 0
    assert change(start, seen[2], "text.transformer") == 0 and change(start, seen[2], "text.proj") > 0
    assert change(start, seen[2], "running_mean") == 0
    weights = "visual.trunk.conv_stem.weight"
    assert 0 < change(seen[1], seen[2], weights) < 2e-4 < change(seen[1], seen[2], "visual.head")


def test_the_last_stages_learn_from_features_of_the_others(towers, tmp_path):
    how = {"image_frozen_steps": ALWAYS, "image_thawed_stages": 1, "max_steps": 3}
    clip, trainer = make(towers, tmp_path, cached=True, **how)
    before = state(clip)
    trainer.train()
    changed = {name for name, value in state(clip).items() if not torch.equal(value, before[name])}
    trunk = {name for name in changed if name.startswith("visual.trunk.")}
    assert trunk == {"visual.trunk.conv_head.weight", "visual.trunk.bn2.weight", "visual.trunk.bn2.bias"}
    assert any(name.startswith("visual.head.") for name in changed)


def test_features_of_captions_teach_what_the_captions_teach(towers, tmp_path):
    how = {"image_frozen_steps": ALWAYS, "text_frozen_steps": ALWAYS, "cached": True, "k": 2, "max_steps": 4}
    losses: list[torch.Tensor] = []
    for texts in (False, True):
        _, trainer = make(towers, tmp_path / str(texts), texts=texts, **how)
        plain = trainer._step
        trainer._step = lambda *args, plain=plain: losses.append(plain(*args)) or losses[-1]
        trainer.train()
    without, with_features = torch.stack(losses).detach().split(4)
    assert torch.allclose(without, with_features, rtol=1e-3) and not torch.equal(without, with_features)


def test_the_best_is_kept_and_ends_the_training_when_nothing_is_better(towers, tmp_path):
    figures, saved = iter([1.0, 3.0, 2.0, 2.5, 9.0]), []
    _, trainer = make(
        towers, tmp_path, measure=lambda step: next(figures), save=lambda: saved.append(trainer.place.step),
        eval_steps=1, patience=2,
    )  # fmt: skip
    assert trainer.train() == 0
    assert saved == [1, 2] and trainer.place.step == 4 and trainer.place.best_step == 2


def test_a_small_new_model_learns_at_one_rate(tmp_path):
    vision = {"timm_model_name": IMAGE_TOWER, "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    clip = small_clip(vision, 16, ["a dog"])
    trainer = ClipTrainer(clip, Schedule(**SCHEDULE), [], str(tmp_path), lambda step: 0.0, lambda: None)
    groups = trainer.optimizer.param_groups
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.1), (1e-2, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len(list(clip.model.parameters()))
    assert len(text_tower_of(clip.model).parameters) == len(
        [name for name, _ in clip.model.named_parameters() if not name.startswith(("visual", "logit_scale"))]
    )


def test_half_precision_learns_too(towers, tmp_path):
    losses = []
    clip, trainer = make(towers, tmp_path, bf16=True, max_steps=3)
    plain = trainer._step
    trainer._step = lambda *args: losses.append(plain(*args)) or losses[-1]
    trainer.train()
    exact, trainer = make(towers, tmp_path / "exact", max_steps=3)
    trainer._step, plain = (lambda *args: losses.append(plain(*args)) or losses[-1]), trainer._step
    trainer.train()
    half, full = torch.stack(losses[:3]), torch.stack(losses[3:])
    assert half.dtype == torch.float32 and not torch.equal(half, full) and torch.allclose(half, full, rtol=0.05)
    assert all(value.dtype != torch.bfloat16 for value in clip.model.state_dict().values())
