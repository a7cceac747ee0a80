"""Start, end and padding tokens of captions, for tokenizers of all families of language models."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, VisionEncoderDecoderModel


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


def set_special_tokens(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer's special tokens into a captioner's model config and generation config."""
    part: Any
    for part in (model.config, model.generation_config):
        part.decoder_start_token_id = part.bos_token_id = tokenizer.bos_token_id
        part.eos_token_id, part.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
