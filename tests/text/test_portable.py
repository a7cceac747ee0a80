"""What is taken out of a text that leaves the machine, and what is not."""

import json
from pathlib import Path

import pytest

from hf_distinct.text.portable import portable, portable_file, portable_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/models/clip", "clip"),
        ("local-dir:/home/alice/models/clip/", "local-dir:clip"),
        ("file:///home/alice/captions.json", "captions.json"),
        (r"C:\Users\alice liddell\pictures", "pictures"),
        ("cannot open '/data/my pictures/7.png': truncated", "cannot open '7.png': truncated"),
        ("a token: hf_abcdefghijklmnop.", "a token: [token]."),
        ("x_hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh/a", "x_[token]/a"),
        ("api_org_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh", "[token]"),
        ("user/hf_captioner_v2 and hf_space_of_my_captioner", "user/hf_captioner_v2 and hf_space_of_my_captioner"),
        ("made by hf_distinct", "made by hf_distinct"),
        ("https://example.org/page, org/name and/or 3/4", "https://example.org/page, org/name and/or 3/4"),
    ],
)
def test_paths_keep_their_last_part_and_tokens_nothing(text, expected):
    assert portable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:s3cret@127.0.0.1/shards/{000..009}.tar", "https://127.0.0.1/shards/{000..009}.tar"),
        ("s3://AKIAKEY:a/b@c@bucket/x", "s3://bucket/x"),
        ("https://token@host:8080/a@b/c", "https://host:8080/a@b/c"),
        ("hf://datasets/user/name@rev/x.tar", "hf://datasets/user/name@rev/x.tar"),
        ("https://b.example/a.tar?X-Amz-Credential=AKIA1&X-Amz-Signature=dead", "https://b.example/a.tar"),
        ("https://x.blob.windows.net/c/a.tar?sv=1&sig=ab%3D, then", "https://x.blob.windows.net/c/a.tar then"),
        ("https://host/a#access_token=1", "https://host/a"),
        ("curl -H 'Authorization: Bearer abc' https://h/a", "curl -H 'Authorization: Bearer [secret]' https://h/a"),
        ("AccountKey=abc;EndpointSuffix=x password=1", "AccountKey=[secret];EndpointSuffix=x password=[secret]"),
        ("AKIAIOSFODNN7EXAMPLE and ghp_" + "a" * 36, "[token] and [token]"),
        ("xhf_" + "aB" * 17, "x[token]"),
        ("max_tokens=20 and sort_key=name", "max_tokens=20 and sort_key=name"),
    ],
)  # fmt: skip
def test_addresses_lose_passwords_and_signatures(text, expected):
    assert portable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice", "~"),
        ("C:\\Users\\alice\\", "~"),
        (str(Path.home()), "~"),
        ("see file:///home/alice/x.json now", "see x.json now"),
        (r"\\server\share\alice\x", "x"),
        ("~alice.liddell/x", "x"),
        ("in //home/alice/x", "in x"),
        ("local-dir:///home/alice/clip", "clip"),
    ],
)
def test_other_spellings_of_a_path(text, expected):
    assert portable(text) == expected == portable(expected)


def test_values_of_any_depth():
    found = {"best": "/home/alice/checkpoint-3", "log": [{"/home/alice/r.py:x": 0.5, "none": None}], "n": (1, "~/x")}
    assert portable_values(found) == {"best": "checkpoint-3", "log": [{"r.py:x": 0.5, "none": None}], "n": [1, "x"]}


def test_settings_of_a_model_name_no_place_and_stay_what_they_are(tmp_path):
    (tmp_path / "near").mkdir()
    config = {
        "_name_or_path": str(tmp_path / "vit"),
        "encoder": {"_name_or_path": "runs/of/alice/vit", "text_config": {"tokenizer_file": "C:\\Users\\al\\t.json"}},
        "decoder": {"_name_or_path": "openai-community/gpt2", "hidden_act": "gelu", "note": "file:///home/alice/x"},
        "text_cfg": {"hf_tokenizer_name": f"{tmp_path}/near/", "proj": None, "ratio": [1, 0.5, True]},
        "eos_token": "</s>", "added_tokens_decoder": {"0": {"content": "/home/x/"}}, "chat_template": "{{ '/a/b' }}",
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    public = portable_file(path)
    config["_name_or_path"] = "vit"
    config["encoder"] = {"_name_or_path": "vit", "text_config": {"tokenizer_file": "t.json"}}
    config["decoder"]["note"] = "x"
    config["text_cfg"]["hf_tokenizer_name"] = "near"
    assert public is not None and json.loads(public) == config
    path.write_bytes(public)
    assert portable_file(path) is None  # nothing is left to be done, to the byte


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", '["/home/x/y"]'), ("config.json", "no JSON")])
def test_words_of_a_vocabulary_and_what_is_no_json_stay(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert portable_file(tmp_path / name) is None
