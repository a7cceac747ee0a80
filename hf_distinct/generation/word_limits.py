"""Apply the word limits of a saved generation config to rollouts and to their log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hf_distinct.losses import IGNORED_LABEL

WORD_LIMITS = (
    "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip
"""Generation config settings that restrict which tokens may come next."""

# Settings that rollouts set themselves, or that do not affect the choice of tokens.
_NO_WORDS = {
    "max_length", "max_new_tokens", "do_sample", "num_beams", "temperature", "num_return_sequences",
    "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation",
    "cache_config", "compile_config", "disable_compile", "return_dict_in_generate", "return_legacy_cache",
    "output_scores", "output_logits", "output_attentions", "output_hidden_states", "transformers_version",
    "_from_model_config", "remove_invalid_values", "renormalize_logits", "trust_remote_code",
}  # fmt: skip
_OF_BEAMS = {"early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"}
USUAL_TOP_K = 50
_OF_SAMPLES = {"top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


def left_out(config: GenerationConfig | None, rollouts: str) -> dict[str, Any]:
    """Return the settings of a generation config that rollouts do not apply, by name.

    Args:
        config: the captioner's own generation config.
        rollouts: ``sample`` or ``beam``.
    """
    if config is None:
        return {}
    other = _OF_BEAMS if rollouts == "sample" else _OF_SAMPLES | {"no_repeat_ngram_size"}
    neutral, usual = _NO_WORDS | other | set(WORD_LIMITS), GenerationConfig()
    asked = {name: value for name, value in config.to_diff_dict().items() if name not in neutral}
    found = {name: value for name, value in asked.items() if value is not None and value != getattr(usual, name, None)}
    if config.do_sample and rollouts == "sample" and config.top_k in (None, USUAL_TOP_K):
        found["top_k"] = USUAL_TOP_K  # the default of `generate`
    return found


def word_limits(config: GenerationConfig, device: torch.device) -> Any:
    """Create the logits processors of a rollout's `WORD_LIMITS`, in the order in which `generate` applies them.

    Args:
        config: from `rollout_config`.
        device: of the logits.

    Returns:
        A ``LogitsProcessorList``, called with captions so far and scores (its type hints are too narrow).
    """
    c, limits = config, LogitsProcessorList()
    ends = torch.tensor(c.eos_token_id).flatten().tolist()
    if c.bad_words_ids:
        limits.append(NoBadWordsLogitsProcessor(c.bad_words_ids, ends))
    if c.min_length:
        limits.append(MinLengthLogitsProcessor(c.min_length, ends, device=str(device)))
    if c.min_new_tokens:
        limits.append(MinNewTokensLengthLogitsProcessor(1, c.min_new_tokens, ends, device=str(device)))
    if c.forced_bos_token_id is not None:
        limits.append(ForcedBOSTokenLogitsProcessor(c.forced_bos_token_id))
    if c.forced_eos_token_id is not None:
        limits.append(ForcedEOSTokenLogitsProcessor(1 + c.max_new_tokens, c.forced_eos_token_id, device=str(device)))
    if c.suppress_tokens:
        limits.append(SuppressTokensLogitsProcessor(c.suppress_tokens, device=str(device)))
    if c.begin_suppress_tokens:
        first = 1 if c.forced_bos_token_id is None else 2
        limits.append(SuppressTokensAtBeginLogitsProcessor(c.begin_suppress_tokens, first, device=str(device)))
    return limits


@torch.no_grad()
def forbidden_tokens(config: GenerationConfig, labels: Tensor, vocabulary: int) -> Tensor | None:
    """Return which tokens were forbidden when each token of the captions was written.

    Args:
        config: from `rollout_config`, with the word limits.
        labels: captions ``(N, L)``, -100 after the end token.
        vocabulary: V.

    Returns:
        ``(T, V)`` bool, in the order of ``labels[labels != -100]``; None if nothing is ever forbidden.
    """
    limits = word_limits(config, labels.device)
    if not limits:
        return None
    real = labels != IGNORED_LABEL
    places = (real.flatten().cumsum(dim=0) - 1).view(real.shape)  # index among real tokens
    written = torch.nn.functional.pad(labels, (1, 0), value=config.decoder_start_token_id)
    found = torch.zeros(int(real.sum()), vocabulary, dtype=torch.bool, device=labels.device)
    for place in range(labels.shape[1]):
        going = real[:, place]
        open_to_all = torch.zeros(int(going.sum()), vocabulary, device=labels.device)
        if len(open_to_all):
            found[places[going, place]] = limits(written[going, : place + 1], open_to_all).isneginf()
    return found
