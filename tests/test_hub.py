"""The card, and the way to the Hub and back, against a real server on the loopback interface."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plain_captions
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, USER, LoopbackHub
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_distinct.hub import push_folder, write_model_card
from hf_distinct.pipelines import load_image_processor

REPOSITORY = Path(__file__).parents[1]
WORDS = ["<pad>", "<bos>", "<eos>", "a", "the", "red", "blue", "big", "small", "crab", "train", "apple", "left", "of"]
METRICS = {
    "before": {"judge/t2i_R@1": 0.5, "CIDEr-D": 2.0},
    "after": {"judge/t2i_R@1": 0.75, "CIDEr-D": float("nan"), "vocabulary": 120, "true": np.float32(0.5)},
    "people": {"judge/t2i_R@1": 0.25},
}

PUSH = """
import sys
from hf_distinct.hub import push_folder
print(push_folder(sys.argv[1], sys.argv[2], private=len(sys.argv) > 3))
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a training leaves it: a tiny captioner with all that belongs to it, its card, and some litter."""
    folder = tmp_path_factory.mktemp("runs") / "captioner"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)

    # Weights this large make untrained captions vary from picture to picture, so that comparing them means something.
    encoder = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=1.0,
    )
    decoder = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        add_cross_attention=True,
        initializer_range=1.0,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.pad_token_id, settings.eos_token_id = 1, 0, 2
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    # Trained models come from somewhere: what they remember of it must not go up.
    VisionEncoderDecoderModel.from_pretrained(folder).save_pretrained(folder)

    write_model_card(
        folder, model_name="cap", settings={"lr": 1e-4}, metrics=METRICS, data=str(folder), scorer="ViT-B-32"
    )
    (folder / "metrics.json").write_text(json.dumps({"before": {}, "after": {}}))
    (folder / "contrast.html").write_text("<html></html>")
    Image.new("RGB", (4, 4)).save(folder / "contrast.png")
    (folder / "checkpoint-3").mkdir()
    (folder / "models").mkdir()
    for litter in ("training_args.bin", "trainer_state.json", "checkpoint-3/optimizer.pt", "models/x.safetensors"):
        (folder / litter).write_text(str(folder))
    return folder


def run_python(code: str, *arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process; huggingface_hub reads its environment once, when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
        cwd=environment["HF_HOME"],
        capture_output=True,
        text=True,
        timeout=300,
    )


def push(
    server: LoopbackHub, *arguments: object, home: Path, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    return run_python(PUSH, *arguments, environment=server.environment(home, token))


@pytest.fixture(scope="module")
def pushed_hub(captioner_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub to which the captioner was pushed."""
    with LoopbackHub() as server:
        pushed = push(server, captioner_folder, "cap", home=tmp_path_factory.mktemp("home"))
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.strip() == f"{server.endpoint}/{USER}/cap"
        yield server


@pytest.mark.both_ends
def test_a_pushed_captioner_speaks_in_a_process_that_knows_only_transformers(pushed_hub, captioner_folder, tmp_path):
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(3):
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(pictures[-1])
    model = VisionEncoderDecoderModel.from_pretrained(captioner_folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(captioner_folder)
    processor = load_image_processor(captioner_folder)
    pixel_values = processor([Image.open(path) for path in pictures], return_tensors="pt").pixel_values
    # One at a time, as the pipeline does: sums over another batch size may differ in their last bit.
    expected = [
        tokenizer.decode(model.generate(pixels[None])[0], skip_special_tokens=True).strip() for pixels in pixel_values
    ]
    assert len(set(expected)) > 1, expected

    code, reader = Path(plain_captions.__file__).read_text(), pushed_hub.environment(tmp_path, token=None)
    captioned = run_python(code, "tester/cap", *pictures, environment=reader)
    assert captioned.returncode == 0, captioned.stderr
    assert [caption.strip() for caption in json.loads(captioned.stdout)] == expected


@pytest.mark.both_ends
def test_a_push_takes_what_a_reader_needs_and_leaves_the_rest(pushed_hub, captioner_folder):
    repo = pushed_hub.repos[f"{USER}/cap"]
    assert set(repo.files) - {"special_tokens_map.json"} == {  # which transformers 5 writes no more
        "README.md",
        "config.json",
        "contrast.html",
        "contrast.png",
        "generation_config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "POST /api/validate-yaml" in pushed_hub.requests
    assert repo.commits == 1 and not repo.private
    for path, content in repo.files.items():
        assert content == (captioner_folder / path).read_bytes()
        assert str(captioner_folder).encode() not in content, path
        assert TOKEN.encode() not in content, path


def test_a_push_can_be_private(hub, captioner_folder, tmp_path):
    pushed = push(hub, captioner_folder, f"{USER}/cap", "private", home=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert hub.repos[f"{USER}/cap"].private


def test_without_a_token_the_error_says_what_to_do(hub, captioner_folder, tmp_path):
    pushed = push(hub, captioner_folder, "cap", home=tmp_path, token=None)
    assert pushed.returncode != 0
    error = pushed.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError") and "hf auth login" in error and "HF_TOKEN" in error
    assert not hub.requests


@pytest.mark.parametrize(("token", "repo_id"), [("hf_wrongwrongwrong", "cap"), (TOKEN, "somebody_else/cap")])
def test_a_token_that_may_not_write_there_is_a_clear_error(hub, captioner_folder, tmp_path, token, repo_id):
    pushed = push(hub, captioner_folder, repo_id, home=tmp_path, token=token)
    assert pushed.returncode != 0
    error = pushed.stderr.strip().splitlines()[-1]
    assert error.startswith("ValueError") and repr(repo_id) in error and hub.endpoint in error
    assert token not in pushed.stderr
    assert not hub.repos


def test_an_incomplete_folder_is_not_pushed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks README.md, generation_config.json, .*, model.safetensors") as raised:
        push_folder(tmp_path, "cap", token="hf_never_used")
    assert " config.json" not in str(raised.value)


def test_the_cards_metadata_is_what_the_hub_reads(tmp_path):
    path = write_model_card(
        tmp_path / "new" / "folder",
        model_name="Crab: a captioner",
        settings={"learning_rate": 2e-4},
        metrics=METRICS,
        data="emoji scenes",
        scorer="local-dir:models/truth_scorer",
        base_model="microsoft/git-base",
    )
    card = ModelCard.load(path)
    assert yaml.safe_load(card.content.split("---")[1]) == card.data.to_dict()
    assert card.data.pipeline_tag == "image-to-text"
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "microsoft/git-base"
    assert "hf_distinct" in card.data.tags
    assert card.data.model_name == "Crab: a captioner"
    # The NaN is left out: it is not JSON, which the Hub turns the metadata into.
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "judge/t2i_R@1": 0.75,
        "vocabulary": 120,
        "true": 0.5,
    }
    assert {result.dataset_type for result in card.data.eval_results} == {"emoji-scenes"}


def test_the_card_shows_metrics_settings_and_captions(tmp_path):
    card = write_model_card(
        tmp_path,
        model_name="cap",
        settings={"learning_rate": 2e-4, "rewards": ["contrastive", "cider"], "note": "a | b"},
        metrics=METRICS,
        data="emoji scenes",
        scorer="ViT-B-32:openai",
        samples=[{"people": "a crab", "before": "a crab", "after": "a big crab | left\nof a train"}],
    ).read_text()
    assert "# cap\n" in card
    assert "| judge/t2i_R@1 | 0.500 | 0.750 | 0.250 |" in card
    assert "| vocabulary | - | 120 | - |" in card
    assert "| a crab | a crab | a big crab \\| left of a train |" in card
    assert "| `learning_rate` | 0.0002 |" in card
    assert "| `rewards` | ['contrastive', 'cider'] |" in card
    assert "| `note` | a \\| b |" in card
    assert "| Reward given by | ViT-B-32:openai |" in card
    assert "`people` are captions" in card and "`ceiling`" not in card
    assert "2402.13936" in card
    assert "{{" not in card and "{%" not in card


def test_a_card_without_results_says_nothing_of_them(tmp_path):
    card = write_model_card(
        tmp_path, model_name="cap", settings={}, metrics=None, data="emoji scenes", scorer="ViT-B-32"
    ).read_text()
    assert "model-index" not in card and "base_model" not in card
    assert "## Results" not in card and "## Captions" not in card and "## Settings" not in card
    assert "\n\n\n" not in card


def test_a_card_tells_nothing_of_the_machine_or_its_user(tmp_path):
    home = tmp_path / "alice liddell"  # a space in a path must not cut it
    (home / "captioner").mkdir(parents=True)
    card = write_model_card(
        home,
        model_name="cap",
        settings={
            "output_dir": "secret_folder",
            "run_name": "secret_run",
            "hub_token": "hf_abcdefghijklmnop",
            "hub_model_id": "alice/cap",
            "push_to_hub": True,
            "note": "hf_abcdefghijklmnop",
            "resume_from_checkpoint": "/home/alice's, runs/checkpoint-10",
            "rewards": [f"{home}/rewards.py:short", "~alice/rewards.py:long", "../alice/r.py:odd", "contrastive"],
            "address": f"file://{home}/captions.json",
            "windows": r"C:\Users\alice liddell\pictures",
            "max_steps": 150,
            "max_new_tokens": 20,
            "url": "https://example.org/page",
        },
        metrics=METRICS,
        data=f"{home}/my pictures",
        scorer=f"local-dir:{home}/models/clip",
        base_model=f"{home}/captioner",
    ).read_text()
    for word in (str(home), "alice", "secret", "hf_abcdefgh", "C:\\", getpass.getuser() + "/"):
        assert word not in card, word
    # What can be told is.
    for word in ("my pictures", "local-dir:clip", "| Started from | captioner |", "rewards.py:short", "contrastive"):
        assert word in card, word
    assert "| `max_steps` | 150 |" in card and "| `max_new_tokens` | 20 |" in card
    assert "https://example.org/page" in card and "checkpoint-10" in card
    assert ModelCard(card).data.base_model is None
