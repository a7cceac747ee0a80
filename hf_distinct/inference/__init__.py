"""Captions for pictures: loading a captioner, and writing captions for files and data sets."""
