"""The tokens by which captions begin, end and are padded, for tokenizers of every family of language models."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, VisionEncoderDecoderModel


def complete_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a language model's tokenizer the end, start and padding token of a captioner's, from those that it has.

    - GPT-2: captions start and end with ``<|endoftext|>``, which also pads;
    - BERT: ``[SEP]`` ends captions and ``[CLS]`` starts them;
    - T5, Marian: there is no start token, and the padding token starts captions, as in their own training;
    - RoBERTa, BART, XGLM and others have all three.

    Raises:
        ValueError: no token can end captions.
    """
    if tokenizer.eos_token is None:
        if tokenizer.sep_token is None:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has neither an end token (eos_token) nor a separator "
                "(sep_token), so that captions could never end. Set its eos_token and save it."
            )
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token or tokenizer.pad_token


def set_special_tokens(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a complete tokenizer's tokens into both configs of a captioner: its own, and that of generation."""
    part: Any
    for part in (model.config, model.generation_config):
        part.decoder_start_token_id = part.bos_token_id = tokenizer.bos_token_id
        part.eos_token_id, part.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
