"""Start, end and padding tokens of captions, for tokenizers of all families of language models."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distinct.families import family_of


def complete_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a tokenizer's start, end and padding token for captions, from the special tokens it has.

    - GPT-2: ``<|endoftext|>`` starts, ends and pads captions;
    - BERT: ``[CLS]`` starts and ``[SEP]`` ends captions;
    - T5, Marian: there is no start token, so the padding token starts captions, as in their own training;
    - RoBERTa, BART, XGLM and others already have all three.

    Raises:
        ValueError: the tokenizer has no token that can end captions.
    """
    if tokenizer.eos_token is None:
        if tokenizer.sep_token is None:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has neither an end token (eos_token) nor a separator "
                "(sep_token), so captions could never end. Set its eos_token and save it."
            )
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token or tokenizer.pad_token


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer's special tokens into a captioner's configs."""
    family, own = family_of(model), tokenizer
    ids = {
        "decoder_start_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id
    }  # fmt: skip
    for config in family.token_configs.values():
        for name, token in ids.items():
            setattr(config, family.token_names[name], token)
        config.bos_token_id, config.eos_token_id = own.bos_token_id, own.eos_token_id
