"""Tokenizers of every family begin, end and pad captions."""

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_distinct.data.collator import CaptionCollator
from hf_distinct.generation.special_tokens import complete_special_tokens, set_special_tokens
from hf_distinct.inference.captioner_fit import captioner_problems

FAMILIES = {  # the tokens that a tokenizer brings; start, end and padding of captions
    "bert": ({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}, ("[CLS]", "[SEP]", "[PAD]")),
    "t5": ({"eos_token": "</s>", "pad_token": "<pad>"}, ("<pad>", "</s>", "<pad>")),
    "gpt2": ({"bos_token": "<|end|>", "eos_token": "<|end|>"}, ("<|end|>", "<|end|>", "<|end|>")),
    "roberta": (
        {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
        ("<s>", "</s>", "<pad>"),
    ),
    "llama": ({"bos_token": "<s>", "eos_token": "</s>"}, ("<s>", "</s>", "</s>")),
}


def tokenizer_of(own: dict[str, str]) -> PreTrainedTokenizerFast:
    tokens = dict.fromkeys(["[UNK]", *own.values(), "a", "red", "dog"])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **own)


@pytest.mark.both_ends
@pytest.mark.parametrize(("own", "expected"), FAMILIES.values(), ids=FAMILIES)
def test_captions_of_every_family_begin_and_end(own, expected, tiny_models, tmp_path):
    tokenizer = tokenizer_of(own)
    complete_special_tokens(tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == expected
    model, _, image_processor = tiny.load_captioner(tiny_models)
    set_special_tokens(model, tokenizer)
    assert not list(captioner_problems(model, tokenizer))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in expected]
    for config in (model.config, model.generation_config):
        assert [config.decoder_start_token_id, config.eos_token_id, config.pad_token_id] == ids
    first, second = tiny.scenes(2)
    rows = [first | {"captions": ["a red dog"]}, second | {"captions": [f"a {expected[1]} dog"]}]
    labels = CaptionCollator(tokenizer, image_processor)(rows)["labels"]
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("a", "red", "dog")]
    assert labels.tolist() == [[[*words, ids[1]]], [[words[0], words[2], ids[1], -100]]]  # one end, no start
    assert tokenizer.decode([*words, ids[1]], skip_special_tokens=True) == "a red dog"
    tokenizer.save_pretrained(tmp_path)  # and whoever loads it finds them, too
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).eos_token_id == ids[1]


def test_a_tokenizer_by_which_nothing_ends_is_refused():
    with pytest.raises(ValueError, match=r"neither an end token \(eos_token\) nor a separator \(sep_token\)"):
        complete_special_tokens(tokenizer_of({"pad_token": "<pad>"}))
