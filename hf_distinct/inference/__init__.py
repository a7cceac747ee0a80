"""Captioning images: load a captioner, and write captions for files and datasets."""
