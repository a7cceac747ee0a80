"""A word-level tokenizer for a small vocabulary, for captioners and CLIP text towers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

PUNCTUATION = r"""[.,;:!?"()]"""


def build_word_tokenizer(captions: Iterable[str], min_count: int = 1, max_length: int = 32) -> PreTrainedTokenizerFast:
    """Create a tokenizer whose tokens are the words of the captions, in lower case and without punctuation marks.

    Marks within words stay, as in "t-shirt" and "man's". The end token has the highest id, because CLIP's text tower
    pools there; encoding with special tokens gives ``<bos> words <eos>``.

    Args:
        captions: the texts whose words form the vocabulary.
        min_count: rarer words become ``<unk>``.
        max_length: maximum text length of a model that uses it, in tokens.

    Raises:
        ValueError: if the captions contain no words.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), " ")])
    counts = Counter(word for caption in captions for word in normalizer.normalize_str(caption).split())
    special = {"<pad>", "<bos>", "<unk>", "<eos>"}  # a caption may contain them as text
    words = sorted(word for word, count in counts.items() if count >= min_count and word not in special)
    if not words:
        raise ValueError("No word occurs often enough for a vocabulary: are there any captions?")
    tokens = ["<pad>", "<bos>", "<unk>", *words, "<eos>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", len(tokens) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
