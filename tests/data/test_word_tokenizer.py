import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_distinct.data.word_tokenizer import build_word_tokenizer

# Words in order of the alphabet behind the three special ones: a 3, big 4, cat 5, dog 6, and the end token last, 7.
CAPTIONS = ["a big dog", "a cat", "A dog"]
BOS, UNK, EOS = 1, 2, 7


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(CAPTIONS, max_length=5)


def test_ids(tokenizer):
    assert len(tokenizer) == 8
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (0, BOS, UNK)
    assert tokenizer.eos_token_id == EOS == max(tokenizer.get_vocab().values())  # CLIP pools at the highest id
    assert tokenizer("a big dog")["input_ids"] == [BOS, 3, 4, 6, EOS]
    assert tokenizer(" A   Big\nDOG ", add_special_tokens=False)["input_ids"] == [3, 4, 6]
    assert tokenizer("a bird")["input_ids"] == [BOS, 3, UNK, EOS]
    assert tokenizer("")["input_ids"] == [BOS, EOS]


def test_a_long_text_is_cut_so_that_the_end_token_stays(tokenizer):
    assert tokenizer("a big dog cat cat cat", truncation=True)["input_ids"] == [BOS, 3, 4, 6, EOS]


def test_padding(tokenizer):
    assert tokenizer(["a", "a cat"], padding=True)["input_ids"] == [[BOS, 3, EOS, 0], [BOS, 3, 5, EOS]]


@given(st.lists(st.sampled_from(["a", "big", "cat", "dog"])).map(" ".join))
def test_decoding_gives_the_text_back(text):
    tokenizer = build_word_tokenizer(CAPTIONS)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_punctuation_marks_are_no_words_but_inside_of_words_they_stay():
    tokenizer = build_word_tokenizer(['A man\'s t-shirt , "red" (or not).', "red; not: red!"], min_count=2)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<bos>", "<unk>", "<eos>", "red", "not"}
    tokenizer = build_word_tokenizer(["A man's t-shirt, red."])
    assert tokenizer.decode(tokenizer("a red t-shirt .")["input_ids"], skip_special_tokens=True) == "a red t-shirt"
    assert {"man's", "t-shirt", "red"} < set(tokenizer.get_vocab())


def test_rare_words_are_left_out():
    tokenizer = build_word_tokenizer(CAPTIONS, min_count=2)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<bos>", "<unk>", "<eos>", "a", "dog"}


def test_captions_that_spell_out_special_tokens():
    tokenizer = build_word_tokenizer(["a <eos> dog <PAD>", "<unk> <bos>"])
    assert tokenizer.get_vocab() == {"<pad>": 0, "<bos>": 1, "<unk>": 2, "a": 3, "dog": 4, "<eos>": 5}
    assert len(tokenizer) == 6  # as many rows as an embedding gets: an id of 6 would have none


@pytest.mark.parametrize("captions", [[], ["", "  "], ["<eos>"]])
def test_nothing_to_take_words_from(captions):
    with pytest.raises(ValueError, match="No word occurs often enough"):
        build_word_tokenizer(captions)


def test_saved_and_loaded_again(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.model_max_length == 5
    for text in ("a big dog", "a bird ."):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
