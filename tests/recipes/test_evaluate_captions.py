"""recipes/evaluate_captions.py as a person runs it."""

from __future__ import annotations

import json
import math
from functools import partial

import forked
import pytest
import tiny
import torch

import hf_distinct
from hf_distinct.evaluation import caption_metrics, retrieval_metrics
from hf_distinct.evaluation.grammar import train_grammar_judge
from hf_distinct.scorer import ClipScorer

run = partial(forked.run, "evaluate_captions.py")
PEOPLE = "people (one caption against the others)"
REFERENCES = {1: ["a dog runs", "the dog"], 2: ["a red bus on a street"], 3: ["two cats sleep", "cats on a bed"]}
OURS = {1: "a dog", 2: "a red bus", 3: "two cats on a bed"}
THEIRS = {3: "a cat", 1: "a dog runs", 2: "a bus on a", 9: "of no image"}


def write(folder):
    rows = [{"image_id": i, "caption": text} for i, own in REFERENCES.items() for text in own]
    (folder / "references.json").write_text(json.dumps({"annotations": rows}))
    for name, said in (("ours", OURS), ("theirs", THEIRS)):
        rows = [{"image_id": i, "caption": text} for i, text in said.items()]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def test_captions_that_anyone_made(tmp_path):
    write(tmp_path)
    files = [
        "--captions",
        tmp_path / "ours.json",
        tmp_path / "theirs.json",
        "--references",
        tmp_path / "references.json",
    ]
    done = run(*files, "--train_captions", tmp_path / "references.json", "--output_dir", tmp_path / "out")
    assert "theirs.json: 1 captions of images that are not in the test set are skipped" in done.stderr
    assert "CIDEr-D" in done.stdout and "ours - theirs: 95 % intervals" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for system, said in (("ours", OURS), ("theirs", THEIRS)):
        expected = caption_metrics([said[i] for i in REFERENCES], list(REFERENCES.values()))
        assert {name: metrics[system][name] for name in expected} == pytest.approx(expected)
    assert (metrics["ours"]["novelty"], metrics["theirs"]["novelty"]) == pytest.approx((1, 2 / 3))
    intervals = json.loads((tmp_path / "out" / "intervals.json").read_text())
    assert set(intervals) == {"ours", "theirs", "ours - theirs", PEOPLE}
    counts = {system: figures.pop("images") for system, figures in metrics.items()}
    assert counts == {"ours": 3, "theirs": 3, PEOPLE: 2}
    # Image 2 has a single reference, which there is none to hold against.
    first, second = ["a dog runs", "two cats sleep"], ["the dog", "cats on a bed"]
    turns = [caption_metrics(*turn) for turn in ((first, [[x] for x in second]), (second, [[x] for x in first]))]
    expected = {name: sum(turn[name] for turn in turns) / 2 for name in turns[0]}
    assert metrics[PEOPLE] == pytest.approx({**expected, "vocabulary": round(expected["vocabulary"])})
    for name, value in metrics["ours"].items():
        assert intervals["ours - theirs"][name]["value"] == pytest.approx(value - metrics["theirs"][name])
    rows = json.loads((tmp_path / "out" / "captions" / "theirs.json").read_text())
    assert rows == [{"image_id": i, "caption": THEIRS[i]} for i in REFERENCES]


def test_captioners_on_pictures(tiny_models, tmp_path):
    model, output = tiny_models / "captioner", tmp_path / "out"
    language, grammar = tiny.language_model(tmp_path / "language"), tmp_path / "grammar"
    judge = train_grammar_judge(tiny.scenes(12)["captions"][0] * 3, epochs=1, width=4)
    judge.accuracy = {"people": 0.5, "cut": 0.75}
    judge.save(grammar)
    options = ["--split", "train", "--test_size", 12, "--scorer", tiny_models / "scorer", "--num_neighbours", 2]
    ways = ["--guidance", 2, "--num_beams", 4, "--best_of", 3, "--seed", 5, "--temperature", 0.8]
    judges = ["--language_model", language, "--grammar", grammar]
    done = run("--model", model, *options, *ways, *judges, "--resamples", 20, "--output_dir", output)
    found = json.loads((output / "metrics.json").read_text())
    assert list(found) == ["captioner", "captioner guidance 2", "captioner beams 4", "captioner best of 3", PEOPLE]
    assert "R@1 by chance: 0.083 among all images, among each image's neighbours 0.333 under the judge" in done.stdout
    assert "grammar: fraction of captions that the grammar judge takes" in done.stdout and "cut 0.75" in done.stdout
    for system, figures in found.items():
        distance = abs(math.log(figures["perplexity"] / found[PEOPLE]["perplexity"]))
        assert system == PEOPLE or figures["perplexity_distance"] == pytest.approx(distance)
    metrics = found["captioner"]
    dataset = tiny.scenes(12)
    said = hf_distinct.caption(dataset["image"][:], model)
    written = json.loads((output / "captions" / "captioner.json").read_text())
    assert [(row["image_id"], row["caption"]) for row in written] == list(zip(dataset["image_id"], said, strict=True))
    assert metrics["grammar"] == judge.accepts(said).mean()
    clip = ClipScorer(str(tiny_models / "scorer"))
    best = hf_distinct.caption(dataset["image"][:], model, num_samples=3, rerank_with=clip, seed=5, temperature=0.8)
    guided = hf_distinct.caption(dataset["image"][:], model, guidance=2.0)
    beams = hf_distinct.caption(dataset["image"][:], model, num_beams=4)
    for name, expected in (("best of 3", best), ("guidance 2", guided), ("beams 4", beams)):
        written = json.loads((output / "captions" / f"captioner {name}.json").read_text())
        assert [row["caption"] for row in written] == expected != said
    sheet = (output / "captions.html").read_text()
    assert "people" in done.stdout and "people (one" not in done.stdout
    assert sheet.count("<figure>") == 12 and sheet.count("captioner guidance 2") == 12
    assert metrics["CIDEr-D"] == pytest.approx(caption_metrics(said, dataset["captions"])["CIDEr-D"])
    images = clip.encode_images(torch.stack([clip.transform(image) for image in dataset["image"]]))
    found = retrieval_metrics(clip.encode_texts(said), images)
    assert {name: metrics[f"scorer/{name}"] for name in found} == pytest.approx(found)
    people = json.loads((output / "metrics.json").read_text())[PEOPLE]
    captions = dataset["captions"][:]
    turns = [[own[turn % len(own)] for own in captions] for turn in range(max(map(len, captions)))]
    found = [retrieval_metrics(clip.encode_texts(said), images) for said in turns]
    expected = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    assert {name: people[f"scorer/{name}"] for name in expected} == pytest.approx(expected)
    assert people["true"] == 1 and not any("RefCLIPScore" in name for name in people)
    assert {"judge/t2i_R@1", "scorer/neighbours_t2i_R@1", "judge/RefCLIPScore", "true", "perplexity"} <= set(metrics)


def test_captions_for_a_part_are_measured_on_that_part(tmp_path):
    write(tmp_path)
    part = [{"image_id": f"COCO_val2014_{i:012}.jpg", "caption": OURS[i]} for i in (3, 2)]
    (tmp_path / "part.json").write_text(json.dumps(part))
    files = ["--captions", tmp_path / "ours.json", tmp_path / "part.json"]
    done = run(*files, "--references", tmp_path / "references.json", "--output_dir", tmp_path / "out")
    assert "part.json has no caption of 1 of the 3 images of the test set, the first with image_id 1" in done.stderr
    assert "2 of 3 images: " in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = caption_metrics([OURS[2], OURS[3]], [REFERENCES[2], REFERENCES[3]])
    assert metrics["ours"] == metrics["part"] == pytest.approx({"images": 2, **expected})
    assert metrics[PEOPLE]["images"] == 1
    done = run("--captions", tmp_path / "ours.json", "--references", tmp_path / "references.json", "--test_size", 1,
               "--output_dir", tmp_path / "out")  # fmt: skip
    assert "\n1 images: " in done.stdout


def test_no_clip_of_emoji_scenes_speaks_of_other_pictures(tiny_models, tmp_path):
    pictures = tmp_path / "pictures"
    forked.run("make_example.py", pictures, 20)
    options = ["--dataset", pictures, "--resamples", 5, "--output_dir", tmp_path / "out"]
    done = run("--model", "captioner", *options)
    assert "No CLIP measures these captions: set --scorer and --judge" in done.stderr
    assert "--model captioner is a shipped captioner, which knows only emoji scenes" in done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "CIDEr-D" in metrics["captioner"] and not any("R@1" in name for name in metrics["captioner"])
    done = run("--model", tiny_models / "captioner", *options, "--scorer", tiny_models / "scorer")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "scorer/t2i_R@1" in metrics["captioner"] and not any("judge" in name for name in metrics["captioner"])
    assert "knows only emoji" not in done.stderr


def test_what_does_not_go_together(tmp_path):
    write(tmp_path)
    assert "nothing to measure" in run(fails=True).stderr
    assert (
        "--best_of needs a scorer"
        in run("--model", "captioner", "--best_of", 2, "--scorer", "", fails=True).stderr
    )
    wrong = ["--model", "captioner", "--num_beams", 0, "--temperature", 0.5, "--grammar", tmp_path]
    error = run(*wrong, "--output_dir", tmp_path / "out", fails=True).stderr
    assert "num_beams=[0] must be positive" in error and "--temperature has no effect without --best_of" in error
    error = run("--model", "captioner", *wrong[-2:], "--output_dir", tmp_path / "out", fails=True).stderr
    assert "contains no readable grammar judge" in error
    (tmp_path / "ours.json").write_text(json.dumps([{"image_id": "none", "caption": "a bus"}]))
    files = ["--captions", tmp_path / "ours.json", "--references", tmp_path / "references.json"]
    error = run(*files, "--output_dir", tmp_path / "out", fails=True).stderr
    assert "ours.json: none of its 1 images is among the 3 of the test set. Its image ids are none; those of" in error
    (tmp_path / "ours.json").write_text(json.dumps([{"image_id": 2, "caption": "a bus"}]))
    (tmp_path / "theirs.json").write_text(json.dumps([{"image_id": 1, "caption": "a dog"}]))
    files = ["--captions", tmp_path / "ours.json", tmp_path / "theirs.json", *files[2:]]
    error = run(*files, "--output_dir", tmp_path / "out", fails=True).stderr
    assert "theirs.json have no image of the test set in common" in error
