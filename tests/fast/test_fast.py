"""One switch turns all accelerations off; one that does not hold turns itself off, by name."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from hf_distinct import fast
from hf_distinct.fast import (
    beam_rows,
    fast_paths,
    finished_rows,
    gelu,
    narrow_products,
    packing,
    shared_cross_attention,
    text_tower,
    usable,
)
from hf_distinct.fast.trial_model import trial_captioner

pytestmark = pytest.mark.both_ends
MODULES = (shared_cross_attention, finished_rows, beam_rows, packing, narrow_products, gelu, text_tower)
NAMES = [module.__name__.rpartition(".")[2] for module in MODULES]


@pytest.fixture
def untried(monkeypatch):
    """Nothing has been tried in this process."""
    monkeypatch.setattr(fast, "_works", {})
    trial_captioner.cache_clear()
    yield
    trial_captioner.cache_clear()


@pytest.mark.parametrize("module", MODULES, ids=NAMES)
def test_what_it_expects_of_other_libraries_holds(module, untried, caplog):
    name = module.__name__.rpartition(".")[2]
    before = torch.random.get_rng_state()
    assert usable(name, module._trial), caplog.text
    assert torch.random.get_rng_state().equal(before)


# What a new release might do: a name that is gone, or other results.
BROKEN = {
    "shared_cross_attention": (shared_cross_attention, "_unfold", lambda layer, args, kwargs, outputs: outputs),
    "finished_rows": (finished_rows.DropFinished, "restore", lambda self, logits: 0 * self.spread(logits)),
    "beam_rows": (beam_rows.BeamRows, "reorder_cache", lambda self, beams: None),
    "packing": (packing.Packing, "pick", lambda self, hidden: hidden.flatten(0, 1)[: len(self.places), None]),
    "narrow_products": (narrow_products, "_multiply", lambda layer, hidden: torch.ops.mkldnn.gone(hidden)),
    "gelu": (gelu.NewGELUActivation, "forward", lambda self, hidden: hidden),
    "text_tower": (text_tower, "_causal_features", lambda tower, ids: tower.embedding_that_was_renamed(ids)),
}


@pytest.mark.parametrize("name", NAMES)
def test_one_that_does_not_hold_is_off_and_told_once(name, untried, monkeypatch, caplog):
    monkeypatch.setattr(*BROKEN[name])
    module = MODULES[NAMES.index(name)]
    assert not usable(name, module._trial) and not usable(name, module._trial)
    told = [each.getMessage() for each in caplog.records if "acceleration" in each.getMessage()]
    assert len([each for each in told if repr(name) in each]) == 1


def test_off_is_off_and_tries_nothing(untried):
    with fast_paths(False):
        assert not usable("gelu", lambda: pytest.fail("it was tried"))
        with fast_paths(True):
            assert not usable("gelu", lambda: True)
    assert usable("gelu", lambda: True)


@pytest.mark.parametrize("rollouts", ["beam", "sample"])
def test_a_training_without_them_is_the_same_training(make_trainer, tmp_path, rollouts):
    settings = {"rollouts": rollouts, "num_rollouts": None, "baseline": "greedy", "max_steps": 3, "kl_weight": 0.1}
    trainers = {on: make_trainer(tmp_path / str(on), **settings, fast_paths=on) for on in (True, False)}
    for trainer in trainers.values():
        torch.manual_seed(0)
        trainer.train()
    fast_one, plain = trainers[True], trainers[False]
    assert_close(torch.tensor(fast_one.step_losses), torch.tensor(plain.step_losses), rtol=1e-4, atol=1e-5)
    assert fast_one.caption(tiny.scenes(6)) == plain.caption(tiny.scenes(6))
    assert not any(isinstance(each, nn.GELU) and each.approximate == "tanh" for each in plain.model.decoder.modules())
    assert not plain.model.decoder.transformer.h[0].crossattention._forward_hooks
    assert fast_one.model.decoder.transformer.h[0].crossattention._forward_hooks


# What each does only where it is used, and the setting of a step in which it would be.
AT_WORK = {
    "shared_cross_attention": (shared_cross_attention, "_fold", "sample"),
    "finished_rows": (finished_rows.DropFinished, "choose", "sample"),
    "beam_rows": (beam_rows.BeamRows, "choose", "beam"),
    "packing": (packing.Packing, "spread", "sample"),
    "narrow_products": (narrow_products, "_multiply", "sample"),
    "text_tower": (text_tower, "_causal_features", "sample"),
}


@pytest.mark.parametrize("name", AT_WORK)
@pytest.mark.parametrize("works", [True, False])
def test_one_that_is_off_is_not_used_in_a_step(make_trainer, monkeypatch, name, works):
    where, function, rollouts = AT_WORK[name]
    plain, used = getattr(where, function), []
    monkeypatch.setattr(where, function, lambda *args, **kwargs: used.append(name) or plain(*args, **kwargs))
    monkeypatch.setattr(fast, "_works", {each: each != name or works for each in NAMES})
    monkeypatch.setattr(narrow_products, "WIDE", 0)
    trainer = make_trainer(rollouts=rollouts, num_rollouts=None, baseline="greedy")
    trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
    assert bool(used) is works
