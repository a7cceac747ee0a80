"""Maximum lengths of texts."""

MAX_CAPTION_CHARACTERS = 1000
"""A longer text is probably an article, not a caption: CLIP reads 77 tokens, about 300 characters."""
