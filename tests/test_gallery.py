import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from hf_distinct import ClipScorer, caption_metrics, emoji_scenes
from hf_distinct.evaluation.bootstrap import mean_of, value_of
from hf_distinct.gallery import Gallery


@pytest.fixture(scope="module")
def clip(tiny_models):
    return ClipScorer(str(tiny_models / "scorer"))


@pytest.fixture(scope="module")
def gallery(clip):
    return Gallery(emoji_scenes("test", 12, seed=1), {"scorer": clip, "judge": clip})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Without known facts; the second file is broken."""
    folder, rows = tmp_path_factory.mktemp("photographs"), emoji_scenes("test", 6, seed=2)
    for index, row in enumerate(rows):
        row["image"].save(folder / f"{index}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    features = Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})
    columns = {
        "image": [str(folder / f"{index}.png") for index in range(6)],
        "captions": [["one caption"] if index == 0 else row for index, row in enumerate(rows["captions"])],
        "image_id": list("abcdef"),
    }
    return Dataset.from_dict(columns, features=features)


def similarities(gallery, captions, clip):
    return clip.encode_texts(captions) @ gallery.image_embeds["judge"].T


def test_metrics_of_scenes(gallery):
    metrics = gallery.measure(["a dog"] * 11 + ["a dog of"])
    for name in ("scorer", "judge"):
        for figure in ("t2i_R@1", "t2i_R@5", "t2i_R@10", "t2i_MRR", "t2i_median_rank", "i2t_R@1", "i2t_MRR"):
            assert f"{name}/{figure}" in metrics
    assert metrics["well_formed"] == pytest.approx(11 / 12) and metrics["vocabulary"] == 3
    assert {"CIDEr-D", "BLEU-4", "ROUGE-L", "mean_length", "unique", "true", "details"} <= set(metrics)
    assert {"judge/neighbours_t2i_R@1", "judge/CLIPScore", "judge/RefCLIPScore"} <= set(metrics)
    assert metrics["judge/t2i_R@1"] <= 1 / 12  # one caption for all singles out one image at most


def test_statistics_are_the_metrics_as_functions_of_the_pictures(gallery):
    captions = [row[0] for row in gallery.dataset["captions"]]
    statistics, metrics = gallery.statistics(captions), gallery.measure(captions)
    assert set(statistics) == set(metrics)
    for name, each in statistics.items():
        assert each(np.ones((1, 12)))[0] == pytest.approx(metrics[name])
    first = np.eye(12)[:1]  # nothing but the first picture
    assert statistics["judge/t2i_R@1"](first)[0] == (gallery.ranks(captions, "judge")[0] == 1)


def test_references_alone_need_no_pictures(gallery):
    known = gallery.dataset.remove_columns(["image", "scene"])
    captions = [row[0] for row in known["captions"]]
    metrics = Gallery(known, {}).measure(captions)
    assert metrics["CIDEr-D"] == gallery.measure(captions)["CIDEr-D"]
    assert not any("/" in name for name in metrics)


def test_both_clips_measure_on_their_own(tiny_models, clip):
    import copy

    other = ClipScorer(str(tiny_models / "scorer"))
    other.model = copy.deepcopy(other.model)
    torch.manual_seed(0)
    torch.nn.init.normal_(other.model.token_embedding.weight, std=1.0)
    gallery = Gallery(emoji_scenes("test", 12, seed=1), {"scorer": clip, "judge": other})
    captions = [row[0] for row in gallery.dataset["captions"]]
    ranks = {name: gallery.ranks(captions, name) for name in ("scorer", "judge")}
    assert ranks["scorer"] != ranks["judge"]
    metrics = gallery.measure(captions)
    for name, found in ranks.items():
        assert metrics[f"{name}/t2i_R@5"] == pytest.approx(sum(rank <= 5 for rank in found) / 12)


def test_ranks_and_similar_images(gallery, clip):
    captions = [row[0] for row in gallery.dataset["captions"]]
    scores = similarities(gallery, captions, clip)
    # Ties count against the caption.
    expected = [1 + sum(bool(scores[i, j] >= scores[i, i]) for j in range(12) if j != i) for i in range(12)]
    assert gallery.ranks(captions, "judge") == expected
    embeds = gallery.image_embeds["judge"]
    for row in range(12):
        order = sorted((j for j in range(12) if j != row), key=lambda j: -float(embeds[row] @ embeds[j]))
        assert gallery.most_similar(row, "judge", count=3) == order[:3]
    assert len(gallery.most_similar(0, "judge", count=50)) == 11


def test_ceiling_says_everything_truly(gallery):
    metrics = gallery.ceiling()
    assert (metrics["well_formed"], metrics["true"], metrics["details"]) == (1.0, 1.0, 6.0)


def test_people_are_measured_against_their_other_captions(gallery):
    metrics = gallery.people()
    assert metrics["true"] == 1.0 and gallery.judges_facts
    own = gallery.measure([captions[0] for captions in gallery.dataset["captions"]])
    assert metrics["judge/t2i_R@1"] == own["judge/t2i_R@1"]
    assert own["BLEU-4"] > metrics["BLEU-4"]  # a caption among its own references is a perfect match


def test_pictures_without_facts_and_one_that_cannot_be_read(photographs, clip, caplog):
    gallery = Gallery(photographs, {"scorer": clip, "judge": clip})
    assert gallery.dataset["image_id"][:] == list("acdef") and not gallery.judges_facts
    assert [len(embeds) for embeds in gallery.image_embeds.values()] == [5, 5]
    torch.testing.assert_close(gallery.image_embeds["scorer"], gallery.image_embeds["judge"])
    assert caplog.text.count("undecodable image") == 1 and "b: image" in caplog.text
    metrics = gallery.people()  # the image with a single caption included
    assert not {"true", "well_formed", "details"} & set(metrics)
    with pytest.raises(ValueError):
        gallery.measure(["a dog"] * 6)  # one too many


def test_without_a_clip_pictures_that_cannot_be_read_are_left_out_too(photographs, clip, caplog):
    assert Gallery(photographs, {}).dataset["image_id"][:] == list("acdef")
    assert "the gallery: skipped 1 x undecodable image (" in caplog.text and "b: image" in caplog.text
    for clips in ({}, {"scorer": clip}):
        with pytest.raises(ValueError, match="undecodable image: .b: image"):
            Gallery(photographs, clips, strict=True)


def test_a_part_of_a_gallery_measures_as_a_gallery_of_that_part(clip):
    scenes, rows = emoji_scenes("test", 12, seed=1), [7, 0, 3, 4, 11, 2]
    whole, alone = Gallery(scenes, {"scorer": clip}), Gallery(scenes.select(rows), {"scorer": clip})
    captions = [row[1] for row in scenes["captions"]]
    before = whole.measure(captions)
    found, expected = whole.select(rows).measure([captions[row] for row in rows]), alone.measure(
        [captions[row] for row in rows]
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():  # among neighbours of all pictures, those that remain
        assert "neighbours" in name or value == pytest.approx(expected[name])
    assert whole.measure(captions) == before
    near = whole.select(rows).neighbours["scorer"]
    for place, row in enumerate(rows):
        remaining = [other for other in whole.neighbours["scorer"][row] if other in rows]
        assert [rows[other] for other in near[place]] == remaining
    # As `caption_metrics` of a trainer, it is told which rows the captions are of.
    assert whole.measure([captions[row] for row in rows], whole.dataset.select(rows)) == found


def test_pictures_that_a_system_says_nothing_of_are_left_out_for_all(gallery):
    said = [f"a dog {row}" for row in range(12)]
    part, (before, after) = gallery.captioned([None, *said[1:]], [*said[:5], None, *said[6:]])
    kept = [row for row in range(12) if row not in (0, 5)]
    assert part.dataset["image_id"][:] == [gallery.dataset["image_id"][row] for row in kept]
    assert before == after == [said[row] for row in kept]
    same, (again,) = gallery.captioned(said)
    assert same is gallery and again == said


def test_rows_of_one_picture_are_one_in_a_gallery(photographs, clip):
    """Else a caption would never single its picture out."""
    twice = Dataset.from_dict(
        {
            "image": [*photographs.cast_column("image", Image(decode=False))["image"]] * 2,
            "captions": ["a dog", "a cat"] * 6,
            "image_id": [*range(6)] * 2,
        }
    )
    assert Gallery(twice, {"scorer": clip}).dataset["image_id"][:] == ["0", "2", "3", "4", "5"]


def test_people_are_measured_one_against_the_others_each_in_turn():
    """By hand, in words: of three captions each is once the caption; an image of two gives its first one twice."""
    captions = [["a dog", "a dog runs", "dogs"], ["a red cat", "cat"]]
    gallery = Gallery(Dataset.from_dict({"image_id": ["1", "2"], "captions": captions}), {})
    found, images = gallery.people_statistics(lambda said: {"letters": mean_of([len(text) for text in said])})
    turns = [
        (["a dog", "a red cat"], [["a dog runs", "dogs"], ["cat"]]),
        (["a dog runs", "cat"], [["a dog", "dogs"], ["a red cat"]]),
        (["dogs", "a red cat"], [["a dog", "a dog runs"], ["cat"]]),
    ]
    metrics = [caption_metrics(*turn) for turn in turns]
    assert images == 2 and set(found) == {*metrics[0], "letters"}
    for name in metrics[0]:
        assert value_of(found[name], 2) == pytest.approx(sum(each[name] for each in metrics) / 3)
    assert value_of(found["mean_length"], 2) == pytest.approx((2.5 + 2 + 2) / 3)
    assert value_of(found["letters"], 2) == pytest.approx((7 + 6.5 + 6.5) / 3)
    assert found["mean_length"](np.array([[1.0, 0.0]]))[0] == pytest.approx(2)  # of the first image alone
    # dog and run stand for 0, 1 and 0 inventions of 1, 2 and 1 words; red and cat for 1, 0, 1 of 2, 1, 2.
    assert value_of(found["invention"], 2) == pytest.approx((1 / 3 + 1 / 3 + 1 / 3) / 3)


def test_people_of_pictures_with_a_single_caption_are_left_out(clip):
    alone = emoji_scenes("test", 4, seed=1)
    captions = [own[:1] if row == 2 else own for row, own in enumerate(alone["captions"])]
    gallery = Gallery(alone.remove_columns("captions").add_column("captions", captions), {"judge": clip}, 0)
    found, images = gallery.people_statistics()
    assert images == 3 and "CIDEr-D" in found and not any("/" in name for name in found)
    whole, _ = Gallery(alone, {"judge": clip}, 0).people_statistics()
    assert "judge/t2i_R@1" in whole and "judge/RefCLIPScore" not in whole
    single = alone.remove_columns("captions").add_column("captions", [["a"]] * 4)
    assert Gallery(single, {}).people_statistics() == ({}, 0)
