"""The Hugging Face Hub: pushes, downloads and model cards."""

from __future__ import annotations

from hf_distinct.hub.transfer import commit_files, model_files, prepare_repo, pull, push_folder

__all__ = ["commit_files", "model_files", "prepare_repo", "pull", "push_folder"]
