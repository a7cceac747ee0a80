"""One name means one model in every place."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

import hf_distinct
from hf_distinct import Captioner, ClipScorer, RLCaptionTrainer
from hf_distinct.files.model_names import SHIPPED, shipped, shipped_or_named


def test_short_names_are_shipped_models_and_others_stay():
    assert shipped_or_named("judge") == shipped("judge") == str(SHIPPED / "judge")
    for name in ("", "ViT-B-32:openai", "hf-hub:a/b", "somebody/captioner", "./judge", "outputs/judge"):
        assert shipped_or_named(name) == name
    with pytest.raises(ValueError, match="ships no model 'oracle'; it ships captioner, judge, scorer, truth_scorer"):
        shipped("oracle")


def test_a_path_is_never_a_short_name(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'judge' cannot be loaded: there is no such folder"):
        shipped_or_named(Path("judge"))
    (tmp_path / "judge").mkdir()
    assert shipped_or_named(Path("judge")) == "./judge"
    assert not caplog.text
    assert shipped_or_named("judge") == shipped("judge")
    assert "to load the local folder, write './judge'" in caplog.text


def test_every_place_takes_every_name(tiny_models, tmp_path):
    picture, folder = tiny.scenes(1)["image"][0], tiny_models / "scorer"
    best = hf_distinct.caption(picture, model="captioner", num_samples=3, rerank_with="judge")
    judge = ClipScorer(shipped("judge"))
    assert best == Captioner(Path(shipped("captioner")), rerank_with=judge)([picture], 3)[0]
    assert Captioner(tiny_models / "captioner", rerank_with=folder).scorer.name == str(folder)
    assert ClipScorer("judge").fingerprint == judge.fingerprint
    assert ClipScorer(folder).fingerprint == ClipScorer(str(folder)).fingerprint
    model, tokenizer, processor = tiny.load_captioner(tiny_models)
    trainer = RLCaptionTrainer(
        model,
        hf_distinct.RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2),
        scorer=folder,
        train_dataset=tiny.scenes(2),
        processing_class=tokenizer,
        image_processor=processor,
    )
    assert trainer.scorer.name == str(folder)
