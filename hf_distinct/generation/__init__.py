"""Writing captions: rollouts by samples or beams, greedy captions beside them, and logits processors."""
