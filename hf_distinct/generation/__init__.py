"""Writing captions: rollouts by sampling or beam search, greedy captions, and logits processors."""
