"""What every recipe leaves, pushed to a Hub and searched byte by byte for what is nobody's business."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
import tiny
from loopback_hub import TOKEN, USER, LoopbackHub
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_distinct import ClipScorer, push_folder
from hf_distinct.files.checkpoints import damage
from hf_distinct.hub.model_card import write_model_card

PERSON = "jane-doe-of-mars"
COUNT = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Path]:
    """A person's home with pictures, towers and a scorer in it, whose files remember where they were made."""
    folder = tmp_path_factory.mktemp("machine") / "home" / PERSON
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    with open(pictures / "metadata.jsonl", "w") as lines:
        for number, row in enumerate(tiny.scenes(COUNT)):
            row["image"].save(pictures / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "captions": row["captions"]}) + "\n")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    bert = BertConfig(**shape, vocab_size=len(words), max_position_embeddings=64)
    BertLMHeadModel(bert).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    scorer = shutil.copytree(tiny_models / "scorer", folder / "scorer")
    for name, key in (("tokenizer_config.json", "name_or_path"), ("special_tokens_map.json", "vocab_file")):
        if (scorer / name).is_file():
            (scorer / name).write_text(json.dumps({**json.loads((scorer / name).read_text()), key: str(folder / "t")}))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(folder))
        for name in ("USER", "LOGNAME"):
            patch.setenv(name, PERSON)
        patch.setenv("HF_TOKEN", TOKEN)
        yield folder


@pytest.fixture(scope="module")
def warmed_up(home: Path) -> Path:
    forked.run(
        "warm_up.py", "--dataset", home / "pictures", "--encoder", home / "vit", "--decoder", home / "bert",
        "--max_steps", 1, "--per_device_train_batch_size", 4, "--captions_per_image", 1, "--output_dir", home / "said",
    )  # fmt: skip
    return home / "said"


@pytest.fixture(scope="module")
def mined(home: Path) -> Path:
    flags = ("--num_neighbours", 2, "--num_workers", 0, "--output_dir", home / "mined")
    forked.run("mine.py", "--dataset", home / "pictures", "--scorer", home / "scorer", *flags)
    return home / "mined"


def assert_private(hub: LoopbackHub, home: Path) -> None:
    """No file of any commit holds home, user, machine or token."""
    secrets = (PERSON, home.parents[1].name, TOKEN)
    # A short name of a machine stands in pictures by chance.
    machine = re.compile(rb"(?<![\w+/=])%s(?![\w+/=])" % re.escape(platform.node().encode()))
    for repo in hub.repos.values():
        assert repo.commits
        for files in repo.history.values():
            for name, content in files.items():
                told = [secret for secret in secrets if secret.encode() in content]
                is_text = not name.endswith((".png", ".safetensors", ".npy", ".pt", ".pth"))
                assert not told and not (is_text and machine.search(content)), (name, told)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        server.adopt(patch)
        yield server


def test_nothing_private_leaves_after_a_warm_up(hub, home, warmed_up):
    nested = json.loads((warmed_up / "config.json").read_text())
    assert any(PERSON in json.dumps(nested[part]) for part in ("encoder", "decoder"))  # it would, as it is
    write_model_card(warmed_up, model_name="said", data=str(home / "pictures"), base_model=str(home / "vit"))
    push_folder(warmed_up, "said")
    assert_private(hub, home)
    public = json.loads(hub.repos[f"{USER}/said"].files["config.json"])
    assert public["encoder"]["_name_or_path"] == "vit" and public["decoder"]["_name_or_path"] == "bert"


def test_nothing_private_leaves_after_a_training(hub, home, warmed_up, mined):
    forked.run(
        "train.py", "--dataset", home / "pictures", "--model_name_or_path", warmed_up, "--scorer", home / "scorer",
        "--mined", mined, "--max_steps", 1, "--per_device_train_batch_size", 4, "--num_rollouts", 2,
        "--discriminator_pretrain_steps", 0, "--run_name", PERSON, "--output_dir", home / "run",
    )  # fmt: skip
    push_folder(home / "run", "run", include_discriminator=True, include_scorer=home / "scorer")
    assert_private(hub, home)
    files = hub.repos[f"{USER}/run"].files
    assert "| Trained on | pictures |" in files["README.md"].decode() and "contrast.html" in files
    # What was taken out, nobody needs to load it.
    for name, content in files.items():
        (home / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "pulled" / name).write_bytes(content)
    VisionEncoderDecoderModel.from_pretrained(home / "pulled")
    assert ClipScorer(home / "pulled" / "scorer").fingerprint == ClipScorer(home / "scorer").fingerprint


def test_nothing_private_leaves_after_mining(hub, home, mined):
    assert PERSON in next(mined.glob("*/manifest.json")).read_text()
    push_folder(mined, "mined", repo_type="dataset")
    assert_private(hub, home)


def test_nothing_private_leaves_after_a_clip_was_trained(hub, home, warmed_up):
    flags = ("--max_steps", 1, "--batch_size", 4, "--eval_steps", 1, "--output_dir", home / "clip")
    forked.run("train_clip.py", "--model", home / "scorer", "--dataset", home / "pictures", *flags)
    if not (warmed_up / "README.md").is_file():
        write_model_card(warmed_up, model_name="said", data="pictures")
    push_folder(warmed_up, "said", include_scorer=home / "clip")
    assert_private(hub, home)


def test_a_checkpoint_is_whole_where_places_were_taken_out_of_it(hub, home, warmed_up, tmp_path):
    shutil.copytree(warmed_up, tmp_path / "captioner")
    os.symlink(home / "scorer", tmp_path / "scorer")
    saving = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    trainer = tiny.make_trainer(tmp_path, home / "saved", **saving)
    trainer.train()
    assert_private(hub, home)
    for name, content in hub.repos[f"{USER}/saved"].files.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    assert damage(tmp_path / "there" / "last-checkpoint") is None
    assert "vit" in (tmp_path / "there" / "last-checkpoint" / "config.json").read_text()
