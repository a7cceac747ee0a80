import copy
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.scorer import ClipScorer, clean_caption, encode_token_ids, save_open_clip, scorer_problems, shipped

PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"
}  # fmt: skip
WORDS = ["a", "dog", "left", "of", "the", "big", "cat", "on", "red", "grass"]
# One word to well over the context of 77 tokens; several of one length, out of order.
TEXTS = [" ".join(WORDS[i % len(WORDS)] for i in range(length)) for length in (1, 90, 3, 12, 76, 75, 3, 200, 0, 30)]


def tiny_clip(**text):
    """An open_clip model of one layer a tower with random weights, and its config; CLIP's own vocabulary."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **text},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(config)).eval()
    torch.nn.init.normal_(model.token_embedding.weight, std=1.0)  # texts spread out as under a trained model
    torch.nn.init.normal_(model.positional_embedding, std=1.0)
    return model, config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scorer") / "clip"
    save_open_clip(*tiny_clip()[:1], path, tiny_clip()[1], PREPROCESS)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer(str(folder))


def pictures(count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 30, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def test_embeddings_are_unit_vectors(scorer):
    images = scorer.encode_images(torch.stack([scorer.transform(image) for image in pictures()]))
    texts = scorer.encode_texts(TEXTS)
    assert images.shape == (3, 16) and texts.shape == (len(TEXTS), 16)
    for embeds in (images, texts):
        assert embeds.dtype == torch.float32 and not embeds.requires_grad
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    assert scorer.embed_dim == 16
    assert scorer.encode_texts([]).shape == (0, 16)
    # open_clip starts at log(1 / 0.07); half precision on disk costs a thousandth.
    assert scorer.logit_scale == pytest.approx(1 / 0.07, rel=2e-3)


def test_the_model_is_frozen(scorer):
    assert not scorer.model.training and not any(p.requires_grad for p in scorer.model.parameters())
    assert scorer.to("cpu") is scorer


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [("a dog", "a dog"), (" a dog.\n", "a dog"), ("a dog .", "a dog"), ("a dog..", "a dog."), (".", ""), ("", ""),
     ("U.S. flag", "U.S. flag"), ("a dog!", "a dog!")],
)  # fmt: skip
def test_cleaning(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_texts_are_cleaned_before_they_are_embedded(scorer):
    clean, dirty, other = scorer.encode_texts(["a dog", "  a dog. \n", "a dog!"])
    torch.testing.assert_close(clean, dirty)
    assert not torch.allclose(clean, other)


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"proj_bias": True},  # the projection is a layer
        {"proj_type": "none", "width": 16},  # there is none
        {"no_causal_mask": True},  # what follows the end token is seen: nothing may be cut
        {"pool_type": "last"},
    ],
    ids=str,
)
def test_trimmed_texts_have_the_features_of_open_clip(text):
    model, _ = tiny_clip(**text)
    token_ids = open_clip.tokenizer.SimpleTokenizer(context_length=77)(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(token_ids)
        for bucket in (1, 3, 128):
            torch.testing.assert_close(encode_token_ids(model, token_ids, bucket), expected, rtol=1e-5, atol=1e-5)
    assert expected.std(dim=0).max() > 0.1  # texts that all looked alike would prove nothing


def test_a_scorer_embeds_as_open_clip_does(scorer):
    with torch.no_grad():
        expected = scorer.model.encode_text(scorer.tokenizer(TEXTS), normalize=True)
    for batch_size in (1, 4, 256):
        torch.testing.assert_close(scorer.encode_texts(TEXTS, batch_size), expected, rtol=1e-5, atol=1e-5)


def test_a_text_longer_than_the_context_keeps_its_end_token(scorer, tiny_models):
    long = "dog " * 300
    assert scorer.tokenizer([long])[0, -1] == 49407
    own = ClipScorer(str(tiny_models / "scorer"))  # with a word-level tokenizer of its own
    ids = own.tokenizer([long, "a dog"])
    assert ids[0, -1] == ids.max() == ids[1].max() and ids[1, -1] == 0
    texts = ["a dog", long, "a dog and a cat"]
    with torch.no_grad():
        expected = own.model.encode_text(own.tokenizer(texts), normalize=True)
    torch.testing.assert_close(own.encode_texts(texts), expected, rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_again(folder, scorer):
    model, config = tiny_clip()
    assert json.loads((folder / "open_clip_config.json").read_text()) == {
        "model_cfg": config, "preprocess_cfg": PREPROCESS
    }  # fmt: skip
    loaded = scorer.model.state_dict()
    for name, value in model.state_dict().items():
        kept = value.half().float() if value.is_floating_point() else value
        torch.testing.assert_close(loaded[name], kept, rtol=0, atol=0)
    image = pictures()[0]
    assert scorer.transform(image).shape == (3, 32, 32)
    white = scorer.transform(Image.new("RGB", (40, 30), "white"))
    torch.testing.assert_close(white, torch.ones(3, 32, 32))  # (1 - 0.5) / 0.5


def test_every_name_of_a_folder_gives_the_same_scorer(folder, scorer):
    other = ClipScorer(f"local-dir:{folder}")
    assert other.fingerprint == scorer.fingerprint
    assert (scorer.name, other.name) == (str(folder), f"local-dir:{folder}")


def test_an_architecture_with_a_checkpoint_file(folder, scorer, tmp_path):
    (tmp_path / "tiny_test_scorer.json").write_text(json.dumps(tiny_clip()[1]))
    open_clip.add_model_config(tmp_path / "tiny_test_scorer.json")
    weights = folder / "open_clip_model.safetensors"
    for other in (ClipScorer(f"tiny_test_scorer:{weights}"), ClipScorer("tiny_test_scorer", pretrained=str(weights))):
        torch.testing.assert_close(other.encode_texts(TEXTS), scorer.encode_texts(TEXTS))


def test_the_fingerprint_tells_weights_and_transforms_apart(folder, scorer, tmp_path):
    assert ClipScorer(str(folder)).fingerprint == scorer.fingerprint
    shutil.copytree(folder, tmp_path / "weights")
    path = tmp_path / "weights" / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.ln_post.bias"][0] += 0.25
    save_file(weights, path)
    shutil.copytree(folder, tmp_path / "transform")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (tmp_path / "transform" / "open_clip_config.json").write_text(json.dumps(config))
    others = [ClipScorer(str(tmp_path / name)).fingerprint for name in ("weights", "transform")]
    assert len({scorer.fingerprint, *others}) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such-model", "neither a folder with an open_clip model nor an open_clip model name"),
        ("no/such/folder", "neither a folder"),
        ("/no/such/folder", "neither a folder"),
        ("", "Empty path"),
        ("local-dir:/no/such/folder", "cannot be loaded"),
        ("RN50", "names an architecture without weights.*'RN50:openai'"),
        ("RN50:/no/such/weights.pt", "cannot be loaded"),
        ("no-such-model:openai", "neither a folder"),
    ],
)
def test_names_that_lead_nowhere(name, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        ClipScorer(name)
    assert repr(name) in str(raised.value)


def break_config(folder):
    (folder / "open_clip_config.json").write_text("{")


def break_weights(folder):
    (folder / "open_clip_model.safetensors").write_bytes(b"nothing")


def other_weights(folder):
    save_file({"logit_scale": torch.zeros(())}, folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "open_clip_config.json").unlink(),
        lambda folder: (folder / "open_clip_model.safetensors").unlink(),
        break_config, break_weights, other_weights,
    ],
    ids=["no config", "no weights", "broken config", "broken weights", "other weights"],
)  # fmt: skip
def test_folders_that_hold_no_whole_model(folder, tmp_path, damage):
    shutil.copytree(folder, tmp_path / "clip")
    damage(tmp_path / "clip")
    with pytest.raises(ValueError, match="cannot be loaded") as raised:  # never a model of random weights
        ClipScorer(str(tmp_path / "clip"))
    assert str(tmp_path / "clip") in str(raised.value)


def test_a_model_that_is_not_shipped():
    with pytest.raises(ValueError, match="ships no model 'oracle'"):
        shipped("oracle")


def test_a_shipped_clip_loads_by_its_short_name_and_others_by_theirs(folder):
    assert ClipScorer("scorer").name == shipped("scorer")
    assert ClipScorer(str(folder)).name == str(folder)


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"pool_type": "eos", "eos_id": 49407},
        {"no_causal_mask": True},
        {"pool_type": "last", "no_causal_mask": True},
        {"embed_cls": True},
    ],
    ids=str,
)
def test_text_towers_of_their_own_have_the_features_of_open_clip(text):
    config = tiny_clip(**text)[1]
    model = open_clip.CustomTextCLIP(**copy.deepcopy(config)).eval()
    torch.nn.init.normal_(model.text.token_embedding.weight, std=1.0)
    token_ids = open_clip.tokenizer.SimpleTokenizer(context_length=77)(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(token_ids)
        torch.testing.assert_close(encode_token_ids(model, token_ids, 3), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ captions that are cut off


def test_a_caption_is_cut_from_the_first_word_on_that_is_not_read(scorer, tiny_models):
    own = ClipScorer(tiny_models / "scorer")  # reads 14 tokens, start and end included
    for clip, words in ((scorer, 75), (own, 12)):
        assert clip.context_length == words + 2
        texts = ["dog " * words, "dog " * words + ".", "dog " * (words + 1), "a dog", "dog " * 300, ""]
        assert clip.is_cut(texts, clip.tokenize(texts)).tolist() == [False, False, True, False, True, False]
        same = clip.encode_texts(["dog " * words + "cat", "dog " * words + "dog cat"])
        torch.testing.assert_close(same[0], same[1])  # what is cut off makes no difference
    assert scorer.is_cut([], scorer.tokenize([])).shape == (0,)


def test_captions_that_may_be_longer_than_the_scorer_reads_are_told_with_both_numbers(scorer):
    assert not list(scorer_problems(scorer, 77))
    (problem,) = scorer_problems(scorer, 78)
    assert "max_new_tokens=78" in problem and "reads only 77" in problem


# ---------------------------------------------------------------------------------------- Hugging Face text towers

WORDS_OF = build_word_tokenizer(WORDS, max_length=24)
TOWERS = {
    "bert": {"max_position_embeddings": 40},
    "roberta": {"max_position_embeddings": 40},
    "xlm-roberta": {"max_position_embeddings": 40},
    "mt5": {"d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
    "m2m_100": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}  # fmt: skip


def hf_clip(kind, path, pooler="mean_pooler", context_length=24):
    """A CLIP with a text tower of transformers in a folder of its own, its config, and that folder."""
    pad = {"pad_token_id": WORDS_OF.pad_token_id}
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower = transformers.AutoConfig.for_model(kind, vocab_size=len(WORDS_OF), **pad, **TOWERS[kind], **(
        small if "hidden_size" not in transformers.AutoConfig.for_model(kind).attribute_map else {}))  # fmt: skip
    tower.save_pretrained(path / "tower")
    config = tiny_clip()[1]
    config["text_cfg"] = {
        "hf_model_name": str(path / "tower"), "hf_model_pretrained": False, "hf_tokenizer_name": "own",
        "hf_proj_type": "linear", "hf_pooler_type": pooler, "context_length": context_length,
    }  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**copy.deepcopy(config)).eval()
    for parameter in model.text.transformer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # texts spread out as under a trained model
    return model, config, path / "tower"


@pytest.mark.both_ends
@pytest.mark.parametrize(("kind", "pooler"), [*((kind, "mean_pooler") for kind in TOWERS), ("bert", "cls_pooler")])
def test_a_folder_with_a_hugging_face_text_tower_needs_nothing_else(kind, pooler, tmp_path):
    model, config, tower = hf_clip(kind, tmp_path, pooler)
    folder = tmp_path / "clip"
    with pytest.raises(ValueError, match="lacks the files of the tokenizer 'own'"):
        save_open_clip(model, folder, config, PREPROCESS)
    WORDS_OF.save_pretrained(folder)
    save_open_clip(model, folder, config, PREPROCESS)
    assert config["text_cfg"]["hf_model_name"] == str(tower)
    shutil.rmtree(tower)
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    scorer = ClipScorer(shutil.move(folder, tmp_path / "moved"))
    texts = ["a dog", "the big cat on the red grass left of the dog", "dog " * 40, "cat", ""]
    for each, value in model.state_dict().items():
        torch.testing.assert_close(scorer.model.state_dict()[each], value, rtol=1e-3, atol=1e-6)
    model.load_state_dict(scorer.model.state_dict())  # in half precision, as saved
    with torch.no_grad():
        expected = model.encode_text(scorer.tokenizer(texts), normalize=True)
    torch.testing.assert_close(scorer.encode_texts(texts), expected, rtol=1e-5, atol=1e-5)
    assert expected.std(dim=0).max() > 0.01


def test_a_hugging_face_text_tower_reads_no_more_than_the_longest_text(tmp_path):
    model, _, _ = hf_clip("bert", tmp_path)
    seen = []
    model.text.transformer.embeddings.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[:2])))
    token_ids = open_clip.tokenizer.HFTokenizer.__call__
    WORDS_OF.save_pretrained(tmp_path / "words")
    token_ids = open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), context_length=24)(["a dog", "a", "dog " * 9])
    encode_token_ids(model, token_ids, bucket=2)
    assert seen == [(2, 4), (1, 11)]  # start and end are read, too


def test_a_text_tower_with_fewer_positions_than_the_context_is_refused(tmp_path):
    model, config, _ = hf_clip("roberta", tmp_path, context_length=40)  # its first position is of padding
    WORDS_OF.save_pretrained(tmp_path / "clip")
    save_open_clip(model, tmp_path / "clip", config, PREPROCESS)
    with pytest.raises(ValueError, match="cannot read a text of 40 tokens"):
        ClipScorer(tmp_path / "clip")


@pytest.mark.parametrize("broken", ["unk_token", "pad_token"])
def test_a_tokenizer_that_cannot_read_is_refused_by_name(tiny_models, tmp_path, broken):
    folder = shutil.copytree(tiny_models / "scorer", tmp_path / "clip")
    if broken == "unk_token":  # of which the tokenizers library makes an Exception
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["unk_token"] = "<none>"
        path.write_text(json.dumps(tokenizer))
    else:
        (folder / "special_tokens_map.json").write_text("{}")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    with pytest.raises(ValueError, match=r"^Scorer .*clip'?: its tokenizer cannot read a text"):
        ClipScorer(folder)


def test_a_tokenizer_with_more_tokens_than_the_text_tower_has_rows_is_refused(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "scorer", tmp_path / "clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"its tokenizer has {rows + 1} tokens, its text tower {rows} rows"):
        ClipScorer(folder)


# ------------------------------------------------------------------------------------------- image towers and weights


def test_a_cnn_of_timm_runs_channels_last_with_the_same_embeddings(tmp_path):
    torch.manual_seed(0)
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    config = tiny_clip()[1] | {"vision_cfg": vision}
    model = open_clip.CLIP(**copy.deepcopy(config)).eval()
    save_open_clip(model, tmp_path, config, PREPROCESS | {"size": [64, 64]})
    scorer = ClipScorer(tmp_path)
    seen = []
    convolution = next(each for each in scorer.model.visual.modules() if isinstance(each, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    pixels = torch.stack([scorer.transform(picture) for picture in pictures()])
    found = scorer.encode_images(pixels)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen[0])
    assert not any(each.is_contiguous() for each in seen[0])
    model.load_state_dict(scorer.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found, model.encode_image(pixels, normalize=True), rtol=1e-4, atol=1e-5)


def test_weights_too_large_for_half_precision_are_kept(folder, tmp_path):
    model, config = tiny_clip()
    with torch.no_grad():
        model.visual.ln_post.weight[0] = 1e6
    save_open_clip(model, tmp_path, config, PREPROCESS)
    assert load_file(tmp_path / "open_clip_model.safetensors")["visual.ln_post.weight"][0] == 1e6
