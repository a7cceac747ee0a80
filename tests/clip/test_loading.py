"""Published CLIPs in miniature, loaded by every name that people have for them, against open_clip's own."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.pretrained import _PRETRAINED, get_pretrained_cfg
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import save_file

from hf_distinct.clip.loading import built_config, published_preprocess
from hf_distinct.clip.openai import OWN_NUMBERS
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.scorer import ClipScorer, save_open_clip

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"
}  # fmt: skip
TEXTS = ["a dog", "Two DOGS left of a red kite, it's 3 o'clock", "word " * 100, ""]
WORDS = build_word_tokenizer(["a red dog on the grass", "two cats"], max_length=12)


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


@pytest.fixture
def small(monkeypatch):
    """ViT-B-32 and its twin, as open_clip knows them, in miniature."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", copy.deepcopy(SMALL))
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", copy.deepcopy(SMALL) | {"quick_gelu": True})


@pytest.fixture(scope="module")
def weights():
    """Of the size that trained weights have, so that the activation shows."""
    torch.manual_seed(0)
    state = open_clip.CLIP(**copy.deepcopy(SMALL)).state_dict()
    return {name: value * 3 if value.ndim > 1 else value for name, value in state.items()}


def theirs(name, weights):
    """Embeddings of pictures and texts by a model that open_clip builds, with its own transform and tokenizer."""
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(picture) for picture in pictures()]), normalize=True)
        return images, model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)


def ours(scorer):
    images = scorer.encode_images(torch.stack([scorer.transform(picture) for picture in pictures()]))
    return images, scorer.encode_texts(TEXTS)


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)  # texts are cut to the longest of a batch


def test_every_published_model_gets_the_activation_of_its_weights():
    built, wanted = {}, {}
    for architecture, tag in open_clip.list_pretrained():
        own = open_clip.get_model_config(architecture).get("quick_gelu", False)
        built[architecture, tag] = built_config(architecture, tag).get("quick_gelu", False)
        wanted[architecture, tag] = get_pretrained_cfg(architecture, tag).get("quick_gelu", own)  # a tag may be silent
    assert built == wanted
    assert built["ViT-B-32", "openai"] and built["ViT-L-14", "dfn2b"] and not built["ViT-B-32", "laion2b_s34b_b79k"]
    assert built["roberta-ViT-B-32", "laion2b_s12b_b32k"]  # the architecture says it, its tag is silent


def published(kind, weights, folder):
    """A name of OpenAI's ViT-B-32, whose files are written into the folder."""
    own_numbers = {name: torch.tensor(number) for name, number in zip(OWN_NUMBERS, (32, 77, 49408), strict=True)}
    if kind == "safetensors":
        save_file(weights | own_numbers, folder / "clip.safetensors")
        return f"ViT-B-32:{folder / 'clip.safetensors'}"
    if kind.startswith("folder"):
        name = published("state dict", weights, folder)
        scorer = ClipScorer(name)
        save_open_clip(scorer.model, folder / "clip", scorer.model_cfg, PREPROCESS)
        config = json.loads((folder / "clip" / "open_clip_config.json").read_text())
        config["preprocess_cfg"] = {"size": 32}  # and open_clip's defaults
        (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
        save_file(weights, folder / "clip" / "open_clip_model.safetensors")
        return f"local-dir:{folder / 'clip'}" if "local-dir" in kind else str(folder / "clip")
    torch.save(weights if kind == "plain" else weights | own_numbers, folder / "clip.pt")
    return f"{'ViT-B-32-quickgelu' if kind in ('plain', 'twin') else 'ViT-B-32'}:{folder / 'clip.pt'}"


@pytest.mark.parametrize("kind", ["state dict", "twin", "plain", "safetensors", "folder", "folder by local-dir"])
def test_openais_weights_from_files_are_the_published_model_to_the_bit(kind, small, weights, tmp_path):
    expected = theirs("ViT-B-32-quickgelu", weights)
    assert not torch.allclose(theirs("ViT-B-32", weights)[0], expected[0], atol=1e-3)  # else it would prove nothing
    scorer = ClipScorer(published(kind, weights, tmp_path))
    assert_same(ours(scorer), expected)
    torch.save(weights, tmp_path / "weights.pt")
    twin = ClipScorer(f"ViT-B-32-quickgelu:{tmp_path / 'weights.pt'}")
    assert torch.equal(scorer.encode_texts(TEXTS), twin.encode_texts(TEXTS))
    assert scorer.model_cfg["quick_gelu"]
    with torch.no_grad():
        whole = scorer.model.encode_text(scorer.tokenizer(TEXTS), normalize=True)
    assert torch.equal(whole, expected[1])  # to the bit where open_clip's own call is made


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "openai"), ("ViT-B/32", "openai"), ("ViT-B-32", "OpenAI"),
    ("ViT-B-32-quickgelu", "openai"), ("ViT-B-32", "metaclip-400m")])  # fmt: skip
def test_tags_decide_on_the_activation_without_a_warning(name, tag, small, weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "clip.pt")
    architecture, key = name.replace("/", "-"), tag.lower().replace("-", "_")
    cached = _PRETRAINED[architecture][key] | {"file": tmp_path / "clip.pt"}
    monkeypatch.setitem(_PRETRAINED[architecture], key, cached)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scorers = [ClipScorer(f"{name}:{tag}"), ClipScorer(name, pretrained=tag)]
    for scorer in scorers:
        assert_same(ours(scorer), theirs("ViT-B-32-quickgelu", weights))


def test_laions_weights_keep_gelu(small, weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "clip.pt")
    tag = _PRETRAINED["ViT-B-32"]["laion2b_s34b_b79k"] | {"file": tmp_path / "clip.pt"}
    monkeypatch.setitem(_PRETRAINED["ViT-B-32"], "laion2b_s34b_b79k", tag)
    assert_same(ours(ClipScorer("ViT-B-32:laion2b_s34b_b79k")), theirs("ViT-B-32", weights))


def test_a_file_that_does_not_say_its_activation_is_warned_of(small, weights, tmp_path, caplog):
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "epoch_1.pt")
    assert_same(ours(ClipScorer(f"ViT-B-32:{tmp_path / 'epoch_1.pt'}")), theirs("ViT-B-32", weights))
    (line,) = [record.message for record in caplog.records if "activation" in record.message]
    assert f"'ViT-B-32-quickgelu:{tmp_path / 'epoch_1.pt'}'" in line
    caplog.clear()
    ClipScorer(f"ViT-B-32-quickgelu:{tmp_path / 'epoch_1.pt'}")
    assert not [record for record in caplog.records if "activation" in record.message]


def test_loading_leaves_the_root_logger_alone(small, weights, tmp_path, caplog):
    torch.save(weights, tmp_path / "clip.pt")
    with caplog.at_level(logging.INFO):
        ClipScorer(f"ViT-B-32-quickgelu:{tmp_path / 'clip.pt'}")
        assert not [record for record in caplog.records if "open_clip" in record.pathname]
        open_clip.create_model("ViT-B-32")
    assert [record for record in caplog.records if "open_clip" in record.pathname]


# ------------------------------------------------------------------------------ models with settings of their own


def siglip(text):
    return {
        "embed_dim": 16, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": SMALL["vision_cfg"],
        "text_cfg": {"context_length": 12, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1, **text},
    }  # fmt: skip


MODELS = {
    "siglip": siglip({"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
                      "hf_tokenizer_name": "own", "tokenizer_kwargs": {"clean": "canonicalize"}}),
    "clipa": siglip({"no_causal_mask": True, "pool_type": "last", "hf_tokenizer_name": "own",
                     "tokenizer_kwargs": {"clean": "lower"}}),
    "eva": siglip({"vocab_size": 49408, "context_length": 32}),
    "worldwide": siglip({"pool_type": "eos", "eos_id": WORDS.eos_token_id, "hf_tokenizer_name": "own"}),
    "vector logit scale": siglip({"hf_tokenizer_name": "own"}) | {"nonscalar_logit_scale": True},
    "coca": siglip({"embed_cls": True, "output_tokens": True, "hf_tokenizer_name": "own"}) | {
        "vision_cfg": SMALL["vision_cfg"] | {"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 4},
        "multimodal_cfg": {"context_length": 12, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 1},
    },
}  # fmt: skip
TRANSFORM = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_of_another_family_embeds_as_open_clip_does(kind, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODELS[kind], "preprocess_cfg": TRANSFORM})
    )
    model_cfg = copy.deepcopy(MODELS[kind])
    custom = model_cfg.pop("custom_text")
    family = open_clip.CoCa if "multimodal_cfg" in model_cfg else open_clip.CustomTextCLIP
    assert custom
    save_file(family(**model_cfg).state_dict(), tmp_path / "open_clip_model.safetensors")
    WORDS.save_pretrained(tmp_path)

    name = f"local-dir:{tmp_path}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    scorer = ClipScorer(name)
    texts = ["a red dog", "A RED-dog, on the Grass!!", "two cats " * 30, "two"]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(picture) for picture in pictures()]), normalize=True)
        expected = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    found = scorer.encode_images(torch.stack([scorer.transform(picture) for picture in pictures()]))
    torch.testing.assert_close(found, images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scorer.encode_texts(texts), expected, rtol=1e-5, atol=1e-6)
    assert repr(scorer.transform) == repr(transform)
    assert scorer.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert scorer.context_length == MODELS[kind]["text_cfg"]["context_length"]
    if kind == "siglip":  # it reads no capitals and no punctuation
        torch.testing.assert_close(*scorer.encode_texts(["a RED dog, on grass!", "a red dog on grass"]))


@pytest.mark.parametrize(
    ("architecture", "mean", "resize_mode"),
    [("ViT-B-16-SigLIP", 0.5, "squash"), ("ViT-L-14-CLIPA", 0.485, "squash"), ("PE-Core-B-16", 0.5, "squash")],
)
def test_a_file_is_prepared_for_as_all_published_weights_of_its_architecture_are(architecture, mean, resize_mode):
    found = published_preprocess(architecture)
    assert (found["mean"][0], found["resize_mode"]) == (mean, resize_mode)
    assert not published_preprocess("ViT-B-32") and not published_preprocess("ViT-B-16-plus")


def test_a_file_of_such_an_architecture_gets_its_transform_and_says_so(monkeypatch, tmp_path, caplog):
    small = copy.deepcopy(MODELS["eva"])
    monkeypatch.setitem(factory._MODEL_CONFIGS, "MobileCLIP-S1", small)
    model_cfg = {key: value for key, value in small.items() if key != "custom_text"}
    save_file(open_clip.CustomTextCLIP(**copy.deepcopy(model_cfg)).state_dict(), tmp_path / "clip.safetensors")
    scorer = ClipScorer(f"MobileCLIP-S1:{tmp_path / 'clip.safetensors'}")
    white = scorer.transform(Image.new("RGB", (40, 30), "white"))
    torch.testing.assert_close(white, torch.ones(3, 32, 32))  # mean 0, std 1; open_clip's default would give about 2
    assert [line for line in caplog.messages if "preprocess_cfg is right" in line and "MobileCLIP-S1" in line]
    assert PreprocessCfg().mean[0] != 0


def test_what_an_architecture_offers_is_named_where_a_tag_does_not_exist(small):
    with pytest.raises(ValueError, match="'laion9b' is neither a file nor a tag of ViT-B-32. Its tags: openai, laion"):
        ClipScorer("ViT-B-32:laion9b")


def test_a_pickle_named_as_a_checkpoint_file_is_refused_in_one_line(small, tmp_path):
    torch.save({"weight": shutil.rmtree}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="cannot be loaded") as raised:
        ClipScorer(f"ViT-B-32:{tmp_path / 'clip.pt'}")
    assert "\n" not in str(raised.value)
