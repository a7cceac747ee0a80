"""How long texts may be."""

MAX_CAPTION_CHARACTERS = 1000
"""A longer text is a pasted article, not a caption: CLIP reads 77 tokens, about 300 characters."""
