"""The shipped models do what their cards say, on scenes drawn anew (the test split, another seed)."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, VisionEncoderDecoderModel

from hf_distinct.data.emoji.captions import full_caption
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.judging import judge_caption, scene_metrics
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.data.negatives import hard_negative
from hf_distinct.evaluation.retrieval import retrieval_metrics
from hf_distinct.inference.pipelines import load_image_processor
from hf_distinct.scorer import ClipScorer, shipped

SCENES = 400


@pytest.fixture(scope="module")
def scenes() -> Any:
    return emoji_scenes("test", SCENES, seed=5)


def embed_images(clip: ClipScorer, scenes: Any) -> torch.Tensor:
    return clip.encode_images(torch.stack([clip.transform(image) for image in scenes["image"]]))


def prefers_truth(clip: ClipScorer, scenes: Any, kind: str) -> float:
    """How often the image is nearer to its true, full caption than to a false or broken one."""
    rng, images = random.Random(0), embed_images(clip, scenes)
    facts = [Scene.from_dict(row) for row in scenes["scene"]]
    truths = [full_caption(scene) for scene in facts]
    lies = [
        hard_negative(text, kind, rng, lambda lie, scene=scene: judge_caption(lie, scene).true) or ""
        for text, scene in zip(truths, facts, strict=True)
    ]
    assert all(lies)
    true, false = (images * clip.encode_texts(truths)).sum(-1), (images * clip.encode_texts(lies)).sum(-1)
    return float((true > false).float().mean())


@pytest.mark.parametrize("name", ["judge", "truth_scorer"])
@pytest.mark.parametrize(("kind", "share"), [("relation", 0.95), ("size", 0.95), ("shuffle", 0.9), ("drop", 0.9)])
def test_those_trained_against_lies_prefer_the_truth(name: str, kind: str, share: float, scenes: Any) -> None:
    assert prefers_truth(ClipScorer(shipped(name)), scenes, kind) >= share


def test_the_plain_scorer_is_a_bag_of_words_like_those_one_downloads(scenes: Any) -> None:
    assert prefers_truth(ClipScorer(shipped("scorer")), scenes, "relation") < 0.65


@pytest.mark.parametrize("name", ["judge", "truth_scorer", "scorer"])
def test_full_captions_find_their_scene(name: str, scenes: Any) -> None:
    clip = ClipScorer(shipped(name))
    texts = clip.encode_texts([full_caption(Scene.from_dict(row)) for row in scenes["scene"]])
    assert retrieval_metrics(texts, embed_images(clip, scenes))["t2i_R@1"] > 0.85


def test_the_judge_has_another_architecture_than_the_scorers() -> None:
    names = ("judge", "scorer", "truth_scorer")
    towers = {name: type(ClipScorer(shipped(name)).model.visual).__name__ for name in names}
    assert towers["judge"] not in (towers["scorer"], towers["truth_scorer"])


def test_the_captioner_writes_true_sentences(scenes: Any) -> None:
    folder = shipped("captioner")
    model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = load_image_processor(folder)
    pixels = processor(images=scenes["image"][:200], return_tensors="pt")["pixel_values"]
    captions = tokenizer.batch_decode(model.generate(pixels), skip_special_tokens=True)
    found = scene_metrics(captions, scenes["scene"][:200])
    assert found["well_formed"] > 0.97
    assert found["true"] > 0.8
