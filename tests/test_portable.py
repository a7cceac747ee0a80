"""What is taken out of a text that leaves the machine, and what is not."""

import pytest

from hf_distinct.portable import portable


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
