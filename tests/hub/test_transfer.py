"""The way to the Hub and back, on good lines and on bad ones, against a real server on the loopback interface."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plain_captions
import pytest
import torch
import transformers
from loopback_hub import TOKEN, USER, LoopbackHub, Repo, cut, deaf, refuse
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

from hf_distinct.hub import transfer as pushing
from hf_distinct.hub.model_card import write_model_card
from hf_distinct.hub.transfer import push_folder
from hf_distinct.inference.pipelines import load_image_processor

REPOSITORY = Path(__file__).parents[2]
NAME = f"{USER}/cap"
WORDS = ["<pad>", "<bos>", "<eos>", "a", "the", "red", "blue", "big", "small", "crab", "train", "apple", "left", "of"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that this process pushes to, without waiting where a connection breaks."""
    monkeypatch.setattr(pushing, "WAITS", (0, 0))
    with LoopbackHub() as server:
        server.adopt(monkeypatch)
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

    write_model_card(folder, model_name="cap", data=str(folder), scorer="ViT-B-32", metrics={"after": {"R@1": 0.5}})
    (folder / "metrics.json").write_text(json.dumps({"before": {}, "after": {}}))
    (folder / "contrast.html").write_text("<html></html>")
    Image.new("RGB", (4, 4)).save(folder / "contrast.png")
    (folder / "checkpoint-3").mkdir()
    (folder / "models").mkdir()
    litter = ("training_args.bin", "trainer_state.json", "checkpoint-3/optimizer.pt", "models/x.safetensors")
    for name in (*litter, "discriminator.safetensors", "emissions.csv"):
        (folder / name).write_text(str(folder))
    return folder


@pytest.fixture(scope="module")
def pushed(captioner_folder: Path) -> Iterator[LoopbackHub]:
    """A Hub to which the captioner was pushed."""
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        server.adopt(patch)
        assert push_folder(captioner_folder, "cap") == f"{server.endpoint}/{NAME}"
        yield server


@pytest.fixture
def copy(captioner_folder: Path, tmp_path: Path) -> Path:
    """The folder once more, to be changed; its files are links."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in captioner_folder.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    return folder


def rewrite(path: Path, content: str) -> None:
    """Give a copy another content, and not the file that it is a link to."""
    path.unlink()
    path.write_text(content)


@pytest.mark.both_ends
@pytest.mark.slow
def test_a_pushed_captioner_speaks_in_a_process_that_knows_only_transformers(pushed, captioner_folder, tmp_path):
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

    captioned = subprocess.run(
        [sys.executable, "-c", Path(plain_captions.__file__).read_text(), NAME, *map(str, pictures)],
        env={**os.environ, **pushed.environment(tmp_path, token=None), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert captioned.returncode == 0, captioned.stderr
    assert [caption.strip() for caption in json.loads(captioned.stdout)] == expected


@pytest.mark.both_ends
def test_a_push_takes_what_a_reader_needs_and_leaves_the_rest(pushed, captioner_folder):
    repo = pushed.repos[NAME]
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
    assert "POST /api/validate-yaml" in pushed.requests
    assert repo.commits == 1 and not repo.private
    for path, content in repo.files.items():
        assert content == (captioner_folder / path).read_bytes()
        assert str(captioner_folder).encode() not in content, path
        assert TOKEN.encode() not in content, path


def test_a_second_push_sends_only_what_changed(hub, copy):
    push_folder(copy, "cap")
    assert hub.asked("PUT /large/") == 2  # weights and contrast sheet
    rewrite(copy / "metrics.json", '{"after": {"R@1": 1}}')
    push_folder(copy, "cap")
    repo = hub.repos[NAME]
    assert repo.sent[1] == {"metrics.json"} and hub.asked("PUT /large/") == 2
    assert repo.files["metrics.json"] == b'{"after": {"R@1": 1}}' and "model.safetensors" in repo.files
    push_folder(copy, "cap")  # the same once more is no commit
    assert repo.commits == 2 and hub.asked("PUT /large/") == 2


def test_weights_of_another_form_do_not_stay_beside_the_new_ones(hub, copy):
    shard = "model-00001-of-00001.safetensors"
    os.rename(copy / "model.safetensors", copy / shard)
    (copy / "model.safetensors.index.json").write_text("{}")
    (copy / "discriminator.safetensors").unlink()
    push_folder(copy, "cap")
    (copy / "model.safetensors.index.json").unlink()
    os.rename(copy / shard, copy / "model.safetensors")
    push_folder(copy, "cap")
    assert {name for name in hub.repos[NAME].files if name.startswith("model")} == {"model.safetensors"}
    assert "config.json" in hub.repos[NAME].files


def test_discriminator_and_scorer_go_along_only_when_asked(hub, copy, tiny_models):
    push_folder(copy, "cap", include_discriminator=True, include_scorer=tiny_models / "scorer")
    files = hub.repos[NAME].files
    assert files["discriminator.safetensors"] == (copy / "discriminator.safetensors").read_bytes()
    scorer = {name for name in files if name.startswith("scorer/")}
    assert {"scorer/open_clip_config.json", "scorer/open_clip_model.safetensors", "scorer/tokenizer.json"} <= scorer
    with pytest.raises(ValueError, match=r"lacks open_clip_config.json, open_clip_model.safetensors"):
        push_folder(copy, "cap", include_scorer=copy)


# ------------------------------------------------------------------------------------------ what people did meanwhile


def edit(hub, old: str, new: str, branch: str = "main") -> None:
    """Edit the card on the Hub, as a person does on its page."""
    repo = hub.repos[NAME]
    files = repo.history[repo.branches[branch]]
    card = files["README.md"].decode()
    assert old in card
    repo.commit(branch, {**files, "README.md": card.replace(old, new).encode()})


@pytest.mark.parametrize("revision", [None, "tried"])
def test_text_added_to_the_card_on_the_hub_stays(hub, copy, caplog, revision):
    push_folder(copy, "cap", revision=revision)
    branch = revision or "main"
    edit(hub, "library_name", "license: mit\nlibrary_name", branch)
    edit(hub, "<!-- End of what hf_distinct wrote. -->", "<!-- End of what hf_distinct wrote. -->\n## By hand", branch)
    (copy / "README.md").unlink()
    write_model_card(copy, model_name="cap", data="more pictures")
    push_folder(copy, "cap", revision=revision)
    repo = hub.repos[NAME]
    card = repo.history[repo.branches[branch]]["README.md"].decode()
    assert "## By hand" in card and "license: mit" in card and "more pictures" in card
    assert "edited" not in caplog.text
    commits = repo.commits
    push_folder(copy, "cap", revision=revision)
    assert repo.commits == commits  # nothing is left to be sent


def test_a_card_edited_within_stays_and_the_new_one_goes_beside_it(hub, copy, caplog):
    push_folder(copy, "cap")
    edit(hub, "# cap", "# My captioner")
    by_hand = hub.repos[NAME].files["README.md"]
    (copy / "README.md").unlink()
    write_model_card(copy, model_name="cap", data="more pictures")
    push_folder(copy, "cap")
    files = hub.repos[NAME].files
    assert files["README.md"] == by_hand and b"more pictures" in files["model_card.md"]
    assert "tester/cap: somebody edited the generated part of README.md there" in caplog.text
    assert "uploaded as model_card.md" in caplog.text


def test_a_card_written_by_hand_here_goes_up_and_says_what_it_replaces(hub, copy, caplog):
    push_folder(copy, "cap")
    rewrite(copy / "README.md", "---\nlicense: mit\n---\n# Mine\n")
    push_folder(copy, "cap")  # in the place of a generated one
    assert hub.repos[NAME].files["README.md"].endswith(b"# Mine\n") and "edited" not in caplog.text
    edit(hub, "# Mine", "# Ours")
    rewrite(copy / "README.md", "---\nlicense: mit\n---\n# Mine again\n")
    push_folder(copy, "cap")
    assert hub.repos[NAME].files["README.md"].endswith(b"# Mine again\n")
    assert "README.md was edited there and is replaced" in caplog.text


# ---------------------------------------------------------------------------------------------- what a tokenizer saves


@pytest.mark.both_ends
def test_the_files_of_every_tokenizer_of_transformers_go_up():
    """By their sources: many of them cannot be imported without libraries of their own."""
    saved = {}
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = getattr(node, "targets", [])
            if any(getattr(target, "id", "") == "VOCAB_FILES_NAMES" for target in targets):
                saved |= dict.fromkeys(ast.literal_eval(node.value).values(), path.name)
    assert len(saved) > 15 and {"spiece.model", "sentencepiece.bpe.model", "vocab.json"} <= set(saved)
    assert {name: source for name, source in saved.items() if name not in pushing.TOKENIZER} == {}


def test_pickles_and_code_beside_a_tokenizer_stay(copy):
    for name in ("tokenizer.pkl", "vocab.pkl", "tokenizer.py", "spiece.model"):
        (copy / name).write_text("x")
    assert set(pushing.model_files(copy)) & {"tokenizer.pkl", "vocab.pkl", "tokenizer.py", "spiece.model"} == {
        "spiece.model"
    }


# ------------------------------------------------------------------------------------------------------- bad lines


@pytest.mark.parametrize(
    "request_",
    [
        "POST /api/repos/create",
        "POST /api/models/tester/cap/preupload",
        "POST /tester/cap.git",
        "PUT /large/",
        "POST /api/models/tester/cap/commit",
    ],
)
def test_a_connection_that_breaks_once_does_not_keep_a_push(hub, captioner_folder, request_):
    hub.meddle(request_, cut)
    push_folder(captioner_folder, "cap")
    repo = hub.repos[NAME]
    assert not hub.meddlers and hub.asked(request_) >= 2  # it did break
    assert (
        repo.commits == 1 and repo.files["model.safetensors"] == (captioner_folder / "model.safetensors").read_bytes()
    )


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, captioner_folder):
    hub.meddle(f"POST /api/models/{NAME}/commit", deaf)
    push_folder(captioner_folder, "cap")
    assert not hub.meddlers and hub.repos[NAME].commits == 1


def test_a_line_that_stays_broken_leaves_the_last_good_commit(hub, copy):
    push_folder(copy, "cap")
    before = dict(hub.repos[NAME].files)
    rewrite(copy / "metrics.json", '{"after": {"R@1": 1}}')
    hub.meddle(f"POST /api/models/{NAME}/commit", cut, times=3)  # the first try, and a second and third
    with pytest.raises(ConnectionError, match="'tester/cap' is unchanged. Run the same command again later"):
        push_folder(copy, NAME)
    assert hub.repos[NAME].files == before and not hub.meddlers


@pytest.mark.slow
def test_a_push_killed_in_mid_upload_leaves_the_last_good_commit_and_can_be_made_again(hub, copy, tmp_path):
    push_folder(copy, "cap")
    repo = hub.repos[NAME]
    before = dict(repo.files)
    Image.new("RGB", (9, 9)).save(copy / "training_curve.png")
    rewrite(copy / "metrics.json", '{"after": {"R@1": 1}}')
    command = [sys.executable, str(REPOSITORY / "recipes" / "push.py"), str(copy), NAME]
    environment = {**os.environ, **hub.environment(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    hub.meddle("PUT /large/", lambda handler: process.kill() or cut(handler))
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert repo.files == before and repo.commits == 1
    push_folder(copy, NAME)
    assert repo.commits == 2 and repo.sent[1] == {"training_curve.png", "metrics.json"}


# --------------------------------------------------------------------------------------------- names, tokens, branches


def test_a_private_repository_is_for_nobody_else(hub, captioner_folder):
    push_folder(captioner_folder, NAME, private=True)
    assert hub.repos[NAME].private and hub.repos[NAME].commits == 1
    push_folder(captioner_folder, NAME, private=True)  # there it is already


def test_what_should_be_private_does_not_go_where_all_can_see_it(hub, captioner_folder):
    hub.repos[NAME] = Repo(NAME, private=False)
    with pytest.raises(ValueError, match="'tester/cap' exists and is public, so nothing was pushed"):
        push_folder(captioner_folder, NAME, private=True)
    assert not hub.repos[NAME].files


def test_a_push_to_a_branch_leaves_main_alone(hub, copy):
    push_folder(copy, NAME)
    rewrite(copy / "metrics.json", '{"after": {"R@1": 1}}')
    for _ in range(2):  # the second one finds the branch
        push_folder(copy, NAME, revision="some/experiment")
    repo = hub.repos[NAME]
    assert set(repo.branches) == {"main", "some/experiment"} and repo.commits == 2
    assert repo.history[repo.branches["some/experiment"]]["metrics.json"] == b'{"after": {"R@1": 1}}'
    assert repo.files["metrics.json"] == b'{"before": {}, "after": {}}'


def test_without_a_token_the_error_says_what_to_do(hub, captioner_folder, monkeypatch):
    hub.adopt(monkeypatch, token=None)
    with pytest.raises(ValueError, match="hf auth login.*HF_TOKEN"):
        push_folder(captioner_folder, "cap")
    assert not hub.requests


@pytest.mark.parametrize(("token", "repo_id"), [("hf_wrongwrongwrong", "cap"), (TOKEN, "somebody_else/cap")])
def test_a_token_that_may_not_write_there_is_a_clear_error(hub, captioner_folder, monkeypatch, token, repo_id):
    hub.adopt(monkeypatch, token=token)
    with pytest.raises(ValueError, match=f"{hub.endpoint} does not let this token write to '{repo_id}'") as raised:
        push_folder(captioner_folder, repo_id)
    assert token not in str(raised.value)
    assert not hub.repos and len(hub.requests) <= 2  # no token gets better by waiting


def test_an_incomplete_folder_is_not_pushed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks README.md, generation_config.json, .*, model.safetensors") as raised:
        push_folder(tmp_path, "cap", token="hf_never_used")
    assert " config.json" not in str(raised.value)


# ------------------------------------------------------------------------------------- what stays here, and what there


def test_links_that_lead_out_and_pickles_stay_here_and_are_named(hub, copy, tmp_path, caplog):
    caplog.set_level("INFO", "hf_distinct")
    (tmp_path / "id_rsa").write_text("a key")
    (copy / "samples.png").symlink_to("../id_rsa")
    (copy / "chat_template.json").symlink_to("config.json")  # which stays inside
    for name in ("tokenizer.pkl", "model.bin", "modeling.py", "model.fp16.safetensors", "a\x1b[2J.pt"):
        (copy / name).write_bytes(b"x")
    push_folder(copy, "cap")
    files = hub.repos[NAME].files
    assert "chat_template.json" in files and b"a key" not in files.values()
    stay = "a.pt, discriminator.safetensors, emissions.csv, model.bin, model.fp16.safetensors, modeling.py"
    assert f": {stay}, samples.png, tokenizer.pkl, trainer_state.json, training_args.bin" in caplog.text
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to("../id_rsa")
    with pytest.raises(ValueError, match="lacks config.json.*Links to files outside of the folder are ignored"):
        push_folder(copy, "cap")


def test_weights_of_others_stay_in_the_repository(hub, copy):
    push_folder(copy, "cap")
    repo = hub.repos[NAME]
    others = (
        "models/other/weights.safetensors", "model_of_my_colleague/model.safetensors", "model.fp16.safetensors",
        "unet/model.safetensors", "model_old.safetensors", "checkpoint-9/model-00001-of-00002.safetensors",
    )  # fmt: skip
    ours = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    repo.commit("main", {**repo.files, **dict.fromkeys([*others, *ours], b"1")})
    push_folder(copy, "cap")
    assert set(others) <= set(repo.files) and not set(ours) & set(repo.files)


@pytest.mark.parametrize("status", [408, 412, 429, 503])
@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "GET /api/models/tester/cap/tree", "POST /api/models/tester/cap/commit"]
)
def test_what_passes_by_itself_is_tried_again(hub, captioner_folder, request_, status):
    hub.meddle(request_, refuse(status))
    push_folder(captioner_folder, "cap")
    assert not hub.meddlers and hub.repos[NAME].commits == 1


def test_a_commit_of_somebody_else_in_between_is_not_lost(hub, copy):
    push_folder(copy, "cap")
    rewrite(copy / "metrics.json", "{}")

    def come_first(handler):
        repo = hub.repos[NAME]
        repo.commit("main", {**repo.files, "NOTES.md": b"theirs"})
        refuse(412)(handler)

    hub.meddle(f"POST /api/models/{NAME}/commit", come_first)
    push_folder(copy, "cap")
    files = hub.repos[NAME].files
    assert files["NOTES.md"] == b"theirs" and files["metrics.json"] == b"{}"


def test_what_the_hub_refuses_for_good_is_not_tried_again(hub, captioner_folder):
    hub.meddle("POST /api/models/tester/cap/commit", refuse(422))
    with pytest.raises(Exception, match="422"):
        push_folder(captioner_folder, "cap")
    assert hub.asked("POST /api/models/tester/cap/commit") == 1


def test_the_token_itself_is_not_published(hub, copy):
    rewrite(copy / "README.md", (copy / "README.md").read_text() + f"\nexport HF_TOKEN={TOKEN}\n")
    with pytest.raises(ValueError, match=r"README.md contains your Hub token, so nothing was pushed") as raised:
        push_folder(copy, "cap")
    assert TOKEN not in str(raised.value) and not hub.repos[NAME].files


def test_the_card_beside_a_readme_of_the_user_goes_up(hub, copy):
    rewrite(copy / "README.md", "---\nlicense: mit\n---\n# Mine\n")
    write_model_card(copy, model_name="cap", data="scenes")
    push_folder(copy, "cap")
    files = hub.repos[NAME].files
    assert files["README.md"].endswith(b"# Mine\n") and b"scenes" in files["model_card.md"]
