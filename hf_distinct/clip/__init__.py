"""CLIP models: loading published ones."""
