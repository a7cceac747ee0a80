"""Rows with hard negatives, the loss, and the measures of a CLIP's training."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from open_clip.loss import ClipLoss

from hf_distinct import ClipScorer
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.data.tower_features import Views
from hf_distinct.evaluation.retrieval import retrieval_metrics
from hf_distinct.training.clip_training import EMOJI_RULES, ENGLISH_RULES, CaptionedImages, Measure, loss_of, says_side

SIZES = Views(lambda image: image.size)  # type: ignore[arg-type,return-value]

BARE, FULL = "a dog and a banana", "a big dog left of a small banana on a red background"
ROW = {"scene": Scene(("dog", "banana"), ("big", "small"), "left of", "red").to_dict(), "captions": [BARE, FULL]}


def test_in_a_drill_the_kind_of_lie_chooses_the_caption() -> None:
    images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[3, 0, 0, 1, 0, 0], drill=1.0)
    rng = random.Random(0)  # kinds: relation, size, swap, shuffle, drop, cut
    drawn = Counter(images.draw(ROW, rng)[1] == FULL.replace("left", "right") for _ in range(800))
    assert drawn[True] / 800 == pytest.approx(0.75, abs=0.05)  # though only one of the captions has a relation


def test_outside_a_drill_captions_are_drawn_as_they_come() -> None:
    images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[3, 0, 0, 1, 0, 0], drill=0.0)
    rng = random.Random(0)
    drawn = [images.draw(ROW, rng) for _ in range(800)]
    drawn = [(ROW["captions"][place], negative) for (place,), negative in drawn]
    assert sum(caption == BARE for caption, _ in drawn) / 800 == pytest.approx(0.5, abs=0.05)
    flipped = [negative == FULL.replace("left", "right") for caption, negative in drawn if caption == FULL]
    assert sum(flipped) / len(flipped) == pytest.approx(0.75, abs=0.06)
    shuffled = {negative for caption, negative in drawn if caption == BARE} - {""}  # now and then the words fall right
    assert len(shuffled) > 20
    for negative in shuffled:  # no relation to flip: always the other kind
        assert sorted(negative.split()) == sorted(BARE.split())
        assert not judge_caption(negative, Scene.from_dict(ROW["scene"])).true


def test_a_caption_that_offers_no_negative_has_none() -> None:
    for drill in (0.0, 1.0):
        images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[1, 0, 0, 0, 0, 0], drill=drill)
        assert images.draw({"captions": ["dogs"]}, random.Random(0)) == ([0], "")


def test_pictures_that_cannot_be_decoded_are_named_and_replaced(tmp_path: Path, caplog) -> None:
    scenes = emoji_scenes("train", 4, seed=0)
    files = []
    for number, image in enumerate(scenes["image"]):
        files.append(str(tmp_path / f"{number}.png"))
        image.save(files[-1])
    Path(files[1]).write_bytes(b"no picture")
    kinds = {"image": ImageFeature(decode=False), "captions": [Value("string")], "image_id": Value("string")}
    rows = {"image": files, "captions": scenes["captions"], "image_id": list("abcd")}
    dataset = Dataset.from_dict(rows, features=Features(kinds))
    images = CaptionedImages(dataset, SIZES)
    assert [images[number][0] for number in range(4)] == [(64, 64)] * 4
    assert "image 'b' cannot be used for training" in caplog.text
    broken = CaptionedImages(dataset.select([1]), SIZES)
    with pytest.raises(
        ValueError, match="20 images in a row cannot be decoded; the last error: image 'b'"
    ):
        broken[0]


class Halves(torch.nn.Module):
    """Embeds and compares, as a CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(
        self, pictures: torch.Tensor, captions: torch.Tensor, lies: torch.Tensor, has_negative: torch.Tensor
    ) -> torch.Tensor:
        images = F.normalize(self.image(pictures), dim=-1)
        texts = F.normalize(self.text(torch.cat([captions, lies[has_negative]])), dim=-1)
        return loss_of(images, texts, self.scale, has_negative, 2.0, len(captions) // len(pictures))


def batch(rows: slice) -> tuple[torch.Tensor, ...]:
    """Some of eight pictures with two captions each, of which one half has three negatives and the other one."""
    chance = torch.Generator().manual_seed(1)
    pictures, lies, captions = (torch.randn(8, *shape, generator=chance) for shape in ((6,), (5,), (2, 5)))
    negatives = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0]).bool()
    return pictures[rows], captions[rows].flatten(0, 1), lies[rows], negatives[rows]


def test_two_processes_have_loss_and_gradient_of_one_with_the_whole_batch(tmp_path: Path, run_processes) -> None:
    whole = Halves()
    loss = whole(*batch(slice(0, 8)))
    loss.backward()
    run_processes(str(Path(__file__).parents[1] / "distributed" / "clip_loss_in_two.py"), [tmp_path], [tmp_path])
    losses = []
    for rank in range(2):
        own, *gradients = torch.load(tmp_path / f"{rank}.pt")
        losses.append(own)
        for gradient, parameter in zip(gradients, whole.parameters(), strict=True):
            assert torch.allclose(gradient, parameter.grad, atol=1e-6) and gradient.abs().max() > 1e-3
    assert torch.allclose(torch.stack(losses).mean(), loss)


def test_the_loss_worked_out_by_hand() -> None:
    unit = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])  # the last one is a negative of the second caption
    loss = loss_of(unit, texts, torch.tensor(2.0), torch.tensor([False, True]), weight=0.5)
    rows = torch.tensor([[2.0, 1.2], [0.0, 1.6]])  # twice the cosines of image and caption
    plain = (F.cross_entropy(rows, torch.tensor([0, 1])) + F.cross_entropy(rows.T, torch.tensor([0, 1]))) / 2
    assert torch.isclose(loss, plain + 0.5 * torch.log(1 + torch.exp(torch.tensor(2 * 0.6 - 2 * 0.8))))


def test_the_loss_of_several_captions_per_image_worked_out_by_hand() -> None:
    unit = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])  # two of the first image, two of the second
    loss = loss_of(unit, texts, torch.tensor(2.0), torch.tensor([False, False]), weight=0.5, k=2)
    cosines = torch.tensor([[2.0, 0.0], [1.6, 1.2], [1.2, 1.6], [0.0, 2.0]])  # twice those of caption and image
    to_images = F.cross_entropy(cosines, torch.tensor([0, 0, 1, 1]))
    # Each caption of the first image against 1.2 and 0.0, which the captions of the second image have with it.
    first = [torch.tensor([[own, 1.2, 0.0]]) for own in (2.0, 1.6)]
    to_captions = torch.stack([F.cross_entropy(each, torch.tensor([0])) for each in first]).mean()  # the second: alike
    assert torch.isclose(loss, (to_images + to_captions) / 2)


def test_with_one_caption_per_image_the_loss_is_that_of_clip() -> None:
    chance = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(9, 4, generator=chance), dim=-1) for _ in range(2))
    clip = ClipLoss()(images, texts, torch.tensor(7.0))
    assert torch.isclose(loss_of(images, texts, torch.tensor(7.0), torch.zeros(9, dtype=torch.bool), 1.0), clip)


def test_an_image_shows_as_many_captions_as_asked_and_repeats_too_few() -> None:
    captions = [["a", "b", "c", "d"], ["a", "b"]]
    rows = Dataset.from_dict({"image": [0, 0], "captions": captions, "image_id": ["x", "y"]})
    numbers = torch.arange(8.0).view(2, 4, 1)
    images = CaptionedImages(rows, SIZES, features=torch.zeros(2, 1, 1), captions_per_image=3)
    seen = [[images[row][1] for _ in range(60)] for row in range(2)]
    assert {len(set(each)) for each in seen[0]} == {3} and len({each[0] for each in seen[0]}) == 4
    assert {tuple(each) for each in seen[1]} == {("a", "b", "a"), ("b", "a", "b")}
    of_features = CaptionedImages(rows, SIZES, None, (), 0.0, torch.zeros(2, 1, 1), 3, numbers)
    torch.manual_seed(0)
    words = [images[0][1] for _ in range(9)]
    torch.manual_seed(0)
    for each in words:
        assert of_features[0][1].flatten().tolist() == ["abcd".index(word) for word in each]
    batch = of_features.collate([of_features[0], of_features[1]])
    assert batch.captions.shape == (6, 1) and set(batch.captions[3:].flatten().tolist()) == {4.0, 5.0}


def test_a_negative_belongs_to_the_first_of_several_captions() -> None:
    images = CaptionedImages(None, SIZES, EMOJI_RULES, [1, 0, 0, 0, 0, 0], drill=1.0, captions_per_image=2)
    for seed in range(9):  # only the second caption has a relation
        assert images.draw(ROW, random.Random(seed)) == ([1, 0], FULL.replace("left", "right"))


def test_a_caption_that_says_a_side_is_not_shown_with_a_mirrored_picture() -> None:
    assert says_side("Left, a man") and says_side("on the right.") and not says_side("a leftover pizza")
    rows = Dataset.from_dict({"image": [0, 0], "captions": [["a man on the left"], ["a man"]], "image_id": ["a", "b"]})
    features = torch.tensor([[[0.0], [1.0]]] * 2)
    views = Views(lambda image: torch.empty(0), mirror=True, count=2)
    images = CaptionedImages(rows, views, features=features)
    seen = [{float(images[row][0]) for _ in range(40)} for row in range(2)]
    assert seen == [{0.0}, {0.0, 1.0}]


def test_every_caption_of_a_photograph_is_a_query_and_the_first_one_is_compared_with_lies(tiny_models: Path) -> None:
    scorer = ClipScorer(tiny_models / "scorer")
    scenes = emoji_scenes("validation", 10, seed=0)
    photographs = scenes.remove_columns("scene")
    measure = Measure(photographs, scorer.transform, scorer.tokenizer, ENGLISH_RULES)
    metrics = measure(scorer.model)
    images = torch.cat([scorer.encode_images(scorer.transform(image)[None]) for image in photographs["image"]])
    texts = scorer.encode_texts([caption for row in photographs["captions"] for caption in row])
    counts = torch.tensor([len(row) for row in photographs["captions"]])
    wanted = retrieval_metrics(texts, images, torch.arange(10).repeat_interleave(counts))
    assert metrics["t2i_R@5"] == wanted["t2i_R@5"] and metrics["i2t_R@1"] == wanted["i2t_R@1"]
    assert {"prefers_truth/size", "prefers_truth/repeat"} <= set(metrics)
    assert not any(name.startswith("prefers") for name in measure(scorer.model, kinds=False))
    assert "prefers_truth/relation" in Measure(scenes, scorer.transform, scorer.tokenizer, EMOJI_RULES)(scorer.model)
