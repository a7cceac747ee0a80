"""A person's own pictures, from files on disk to a captioner that `pipeline` loads, by the recipe as it is run."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import open_clip
import plain_captions
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from loopback_hub import USER, LoopbackHub
from model_card_pattern import MODEL_CARD_PATTERN
from PIL import Image
from transformers import AutoTokenizer, VisionEncoderDecoderModel

from hf_distinct import emoji_scenes
from hf_distinct.scorer import save_open_clip

TRAIN = forked.RECIPES / "train.py"
COUNT = 40
# Numbers of the odd pictures; the others are plain JPEG and PNG files of many sizes.
GREY, OPAQUE, CMYK, TINY, TRUNCATED, MISSING, TRANSPARENT, SILENT, WORDY = 1, 2, 3, 4, 5, 12, 13, 14, 15
TEST = range(10)  # of the Karpathy file; four of the odd pictures that can be read are among them
QUICK = {
    "max_steps": 2, "per_device_train_batch_size": 6, "num_rollouts": 2, "discriminator_pretrain_steps": 1,
    "max_reference_length": tiny.MAX_LENGTH, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


def file_name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.{'png' if number in (GREY, OPAQUE, TINY, TRANSPARENT) else 'jpg'}"


def write_picture(picture: Image.Image, number: int, path: Path) -> None:
    if number == MISSING:
        return
    picture = picture.resize((48 + 7 * (number % 9), 40 + 11 * (number % 7)))
    if number == GREY:
        picture = picture.convert("L")
    elif number in (OPAQUE, TRANSPARENT):
        picture = picture.convert("RGBA")
        picture.putalpha(255 if number == OPAQUE else 100)
    elif number == CMYK:
        picture = picture.convert("CMYK")
    elif number == TINY:
        picture = picture.resize((2, 2))
    picture.save(path)
    if number == TRUNCATED:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sentences(captions: list[str], number: int) -> list[str]:
    if number == SILENT:
        return ["", "  ", "."]
    written = [f"{caption.capitalize()}." for caption in captions]
    return [*written, "very " * 2000] if number == WORDY else written


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder of pictures, and the captions of each."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = emoji_scenes("train", COUNT, seed=5)
    for number, row in enumerate(rows):
        write_picture(row["image"], number, folder / file_name(number))
    return folder, [sentences(row["captions"], number) for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def judge(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another CLIP than the scorer."""
    folder = tmp_path_factory.mktemp("judge") / "judge"
    shutil.copytree(tiny_models / "scorer", folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    torch.manual_seed(1)
    save_open_clip(open_clip.CLIP(**config["model_cfg"]), folder, config["model_cfg"], config["preprocess_cfg"])
    return folder


def karpathy(folder: Path, captions: list[list[str]]) -> dict[str, Any]:
    images, sentence_id = [], 0
    for number, texts in enumerate(captions):
        found = []
        for text in texts:
            words = text.lower().rstrip(".").split()
            found.append({"tokens": words, "raw": text, "imgid": number, "sentid": sentence_id})
            sentence_id += 1
        images.append(
            {
                "filepath": "val2014",
                "sentids": [each["sentid"] for each in found],
                "filename": file_name(number),
                "imgid": number,
                "split": "test" if number in TEST else "val" if number < 12 else ("train", "restval")[number % 2],
                "sentences": found,
                "cocoid": 1000 + number,
            }
        )
    return {"images": images, "dataset": "coco"}


def coco(captions: list[list[str]]) -> dict[str, Any]:
    texts = [(number, text) for number, row in enumerate(captions) for text in row]
    return {
        "info": {"description": "COCO 2014 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2014},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": file_name(number), "height": 64, "width": 64, "id": 1000 + number,
             "date_captured": "2013-11-14 11:18:45", "flickr_url": "", "coco_url": ""}
            for number in range(len(captions))
        ],
        "annotations": [{"image_id": 1000 + n, "id": i, "caption": text} for i, (n, text) in enumerate(texts)],
    }  # fmt: skip


def lay_out(form: str, folder: Path, captions: list[list[str]], target: Path) -> list[str]:
    """Write the captions in one of the three forms beside a copy of the pictures; returns the recipe's flags."""
    if form == "folder":
        shutil.copytree(folder, target)
        lines = [{"file_name": file_name(number), "captions": texts} for number, texts in enumerate(captions)]
        (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return ["--dataset", str(target)]
    shutil.copytree(folder, target / "val2014")
    document = karpathy(folder, captions) if form == "karpathy" else coco(captions)
    (target / "captions.json").write_text(json.dumps(document), encoding="utf-8")
    root = target if form == "karpathy" else target / "val2014"
    return ["--dataset", str(target / "captions.json"), "--image_root", str(root)]


def flags(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def own_models(models: Path, judge: Path) -> dict[str, Any]:
    return {"model_name_or_path": models / "captioner", "scorer": models / "scorer", "judge": judge}


SLOW_FORMS = [pytest.param(form, marks=pytest.mark.slow) for form in ("karpathy", "coco")]


@pytest.mark.parametrize("form", ["folder", *SLOW_FORMS])
def test_own_pictures_become_a_captioner_that_pipeline_loads(form, pictures, tiny_models, judge, tmp_path):
    folder, captions = pictures
    data = lay_out(form, folder, captions, tmp_path / "data")
    out = tmp_path / "out"
    models = own_models(tiny_models, judge)
    if form == "folder":
        del models["judge"]
    finished = forked.run(TRAIN.name, *data, *flags(output_dir=out, **models, **QUICK))

    # What could not be used is told by name, and why; nothing else is.
    ids = {number: file_name(number) if form == "folder" else str(1000 + number) for number in range(COUNT)}
    for reason, name in (
        ("1 x missing image file", file_name(MISSING)),
        ("1 x image without a caption", ids[SILENT]),
        ("3 x empty caption", ids[SILENT]),
        ("1 x caption over 1000 characters", ids[WORDY]),
        ("1 x undecodable image", f"{ids[TRUNCATED]}: "),
    ):
        assert any(reason in line and name in line for line in finished.stderr.splitlines()), (reason, finished.stderr)
    assert finished.stderr.count("undecodable image") == 1
    assert "The scorer can hardly retrieve in this domain" in finished.stderr  # the tiny scorer is random

    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == ["before", "after", "people"]
    clips = [name for name in ("scorer", "judge") if name in models]
    retrieval = [f"{clip}/{way}_{name}" for clip in clips for way in ("t2i", "i2t")
                 for name in ("R@1", "R@5", "R@10", "MRR")]  # fmt: skip
    for values in metrics.values():
        language = {"CIDEr-D", "BLEU-4", "ROUGE-L", "vocabulary", "mean_length", "unique", "repeats", "bad_endings"}
        assert language | set(retrieval) <= set(values)
        assert not {"true", "well_formed", "details"} & set(values)  # nobody knows the facts of a photograph
    lines = [line.split() for line in finished.stdout.splitlines()]
    names = [first for first, *_ in lines[lines.index(["people", "before", "after"]) + 2 :]]
    assert {f"{clip}/t2i_R@1" for clip in clips} | {"repeats", "bad_endings", "CIDEr-D"} <= set(names)
    assert "Setting accelerator" not in finished.stdout + finished.stderr  # DeepSpeed's, of a machine without GPU

    html = (out / "contrast.html").read_text(encoding="utf-8")
    with Image.open(out / "contrast.png") as sheet:
        assert sheet.width == 1600
    said = json.loads((out / "captions.json").read_text())
    assert said["after"][""][0] in html and "data:image/png;base64" in html
    shown = said["image_id"][""]
    assert len(said["before"][""]) == len(said["after"][""]) == len(shown)
    if form == "karpathy":
        assert shown == [ids[number] for number in TEST if number != TRUNCATED]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    for said_of_them in (finished.stdout, html, card, json.dumps(metrics)):
        assert ("judge" in said_of_them) == ("judge" in models)  # nobody speaks that was not named

    # The folder in a process that cannot even import hf_distinct: -I leaves the working folder and PYTHONPATH out.
    # The pipeline makes neither a picture of one pixel nor, as we do, a white ground for a transparent one.
    numbers = {image_id: number for number, image_id in ids.items()}
    expected = {
        str(folder / file_name(numbers[image_id])): caption
        for image_id, caption in zip(shown, said["after"][""], strict=True)
        if numbers[image_id] not in (TINY, TRANSPARENT)
    }
    assert len(expected) >= 2
    command = [sys.executable, "-I", plain_captions.__file__, str(out), *expected]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1]) == list(expected.values())
    if form == "karpathy":
        assert len(set(expected.values())) > 1


@pytest.mark.slow
def test_a_run_is_pushed_with_all_that_a_reader_needs(pictures, tiny_models, judge, tmp_path):
    data, out = lay_out("folder", *pictures, tmp_path / "data"), tmp_path / "captioner"
    settings = {
        "output_dir": out, "push_to_hub": True, "hub_private_repo": True, "save_strategy": "steps", "save_steps": 1,
        "data_license": "CC-BY 4.0", "emissions": 12.5, **own_models(tiny_models, judge),
    }  # fmt: skip
    with LoopbackHub() as hub:
        environment = ENVIRONMENT | hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
        command = [sys.executable, str(TRAIN), *data, *flags(**settings, **QUICK)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.splitlines()[-1] == f"{hub.endpoint}/{USER}/captioner"
        assert list(hub.repos) == [f"{USER}/captioner"]
        repo = hub.repos[f"{USER}/captioner"]
    assert repo.private and repo.commits >= 2  # a save during training, unless another was under way; and the end
    needed = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    }
    assert needed | {"README.md"} <= set(repo.files)
    for name in needed | {"README.md"}:
        assert repo.files[name] == (out / name).read_bytes(), name
    assert not any(b"/tmp" in repo.files[name] for name in repo.files if name.endswith((".md", ".json")))
    assert {"metrics.json", "contrast.png", "samples.png", "training_curve.png"} <= set(repo.files)
    check_card(repo.files["README.md"].decode(), json.loads(repo.files["metrics.json"]))


def check_card(card: str, metrics: dict[str, dict[str, float]]) -> None:
    """It is of the one pattern, and each of its figures is the measured one."""
    assert MODEL_CARD_PATTERN.fullmatch(card), card
    assert "12.5 g of CO2 equivalents" in card
    assert "| Licence of the data | CC-BY 4.0 |" in card and "| `max_steps` | 2 |" in card
    results = ModelCard(card).data.eval_results
    assert results and all(result.metric_value == metrics["after"][result.metric_type] for result in results)
    rows = re.search(r"\| before \| after \| people \|\n\| --- .+\n((?:\|.+\n)+)", card)[1].splitlines()
    assert len(rows) == len(results)
    for row in rows:
        name, *cells = row.strip("| ").split(" | ")
        values = [metrics[system][name] for system in ("before", "after", "people")]
        assert cells == [str(value) if isinstance(value, int) else f"{value:.3f}" for value in values], name


def test_the_worked_example_names_the_shipped_models(tmp_path):
    forked.run("make_example.py", tmp_path / "example", 40)
    shown = {"model_name_or_path": "captioner", "scorer": "scorer", "judge": "judge"}
    settings = {"dataset": tmp_path / "example", "output_dir": tmp_path / "out", "eval_size": 2, **shown, **QUICK}
    finished = forked.run(TRAIN.name, *flags(**settings, max_new_tokens=8))
    for name, model in shown.items():
        assert f"--{name} names the shipped model {model}, which knows only emoji" in finished.stderr
    assert "judge/t2i_R@1" in finished.stdout
    assert "| Started from | captioner, shipped with hf_distinct |" in (tmp_path / "out" / "README.md").read_text()


def complaint(*arguments: str) -> str:
    """The last line of what the recipe says when it fails."""
    return forked.run(TRAIN.name, *arguments, fails=True).stderr.splitlines()[-1]


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")  # below a file nobody can write, not even root
    message = complaint("--output_dir", str(tmp_path / "file" / "out"))
    assert "output_dir" in message and "cannot be written" in message and str(tmp_path / "file") in message


def test_scorer_that_does_not_exist(tiny_models, tmp_path):
    captioner = str(tiny_models / "captioner")
    arguments = flags(output_dir=tmp_path / "out", model_name_or_path=captioner, scorer=tmp_path / "nowhere")
    message = complaint(*arguments)
    assert str(tmp_path / "nowhere") in message and "neither a folder with an open_clip model" in message


def test_unknown_setting():
    message = complaint("--rolouts", "beam")
    assert message == "train.py: error: unknown setting --rolouts; did you mean --rollouts?"


def test_json_of_the_wrong_shape(tiny_models, judge, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"pictures": []}')
    message = complaint(*flags(output_dir=tmp_path / "out", dataset=path, **own_models(tiny_models, judge)))
    assert message.startswith("train.py: error: ") and str(path) in message
    assert "expected a list" in message and "an object with the keys pictures" in message


@pytest.fixture
def refusal(
    pictures: tuple[Path, list[list[str]]], tiny_models: Path, judge: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:  # fmt: skip
    """Runs the recipe in this process, which is quicker, and returns the message that it ends with."""

    def run_here(**settings: Any) -> str:
        data = lay_out("folder", *pictures, tmp_path / "data")
        given = {"output_dir": tmp_path / "out", **own_models(tiny_models, judge), **QUICK, **settings}
        monkeypatch.setattr(sys, "argv", [str(TRAIN), *data, *flags(**given)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TRAIN), run_name="__main__")
        message = ended.value.code
        assert isinstance(message, str) and message.startswith("train.py: error: ") and "\n" not in message
        return message

    return run_here


def test_a_batch_that_the_pictures_do_not_fill(refusal):
    assert "30 training images do not fill one batch of 32" in refusal(per_device_train_batch_size=32)


def test_a_batch_of_one(refusal):
    message = refusal(per_device_train_batch_size=1, memory_batches=0)
    assert "other images to compare with" in message


def test_captioner_without_a_start_token(refusal, tiny_models, tmp_path):
    model = VisionEncoderDecoderModel.from_pretrained(tiny_models / "captioner")
    for config in (model.config, model.config.decoder, model.generation_config):
        config.decoder_start_token_id = None
    model.save_pretrained(tmp_path / "captioner")
    AutoTokenizer.from_pretrained(tiny_models / "captioner").save_pretrained(tmp_path / "captioner")
    shutil.copy(tiny_models / "captioner" / "preprocessor_config.json", tmp_path / "captioner")
    assert "no decoder_start_token_id" in refusal(model_name_or_path=tmp_path / "captioner")


def test_captioner_that_does_not_exist(refusal, tmp_path):
    assert str(tmp_path / "nobody") in refusal(model_name_or_path=tmp_path / "nobody")


@pytest.mark.parametrize(
    ("body", "expected"),
    [("[float('nan')] * len(captions)", "5 steps in a row"), ("[1.0] * 3", "returned 3 values for 18 captions")],
)
def test_a_reward_of_ones_own_that_fails(refusal, tmp_path, body, expected):
    file = tmp_path / "own.py"
    file.write_text(f"def reward(captions, references, **columns):\n    return {body}\n")
    message = refusal(reward=f"{file}:reward", max_steps=5)
    assert expected in message and "reward" in message
