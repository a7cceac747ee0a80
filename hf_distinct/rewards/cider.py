"""CIDEr-D as a reward: self-critical sequence training (arXiv 1612.00563)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distinct.evaluation.captions import CiderD
from hf_distinct.rewards.base import RewardBatch


class CiderReward:
    """CIDEr-D (arXiv 1411.5726) of each caption against the references of its image.

    It is not an advantage: use it with the greedy baseline for self-critical sequence training. It ignores embeddings.
    A reference caption is scored against all references of its image, itself included.

    Unlike the evaluation metric, the reward treats the end of a caption as a word, in captions, references and
    document frequencies. Without it a captioner learns to stop at "with a", which CIDEr-D does not penalise
    (self-critical sequence training, appendix E). So its values differ slightly from the metric. Every caption is
    treated as ended, even if it was truncated at ``max_new_tokens``. In scripts without spaces (Chinese, Japanese and
    others), each character is a word.

    Args:
        references_corpus: all references of each training image, for the document frequencies of n-grams. They are
            counted once; if they were counted per batch, the reward of a caption would depend on its batch. The counts
            of a column of a dataset in files (``dataset["captions"]``) are kept beside these files, so that only one
            process counts them, and all map them.
    """

    name = "cider"
    is_advantage = False

    def __init__(self, references_corpus: Sequence[list[str]]) -> None:
        self._cider = CiderD(references_corpus, end_token=True)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,) float32; 1.0 is reported as CIDEr 100 in papers."""
        scores = self._cider.scores(batch.captions, batch.references)
        return torch.tensor(scores, dtype=torch.float32, device=batch.text_embeds.device)
