"""CLIP models: loading what others published, and training new ones."""
