"""Metrics for `evaluate.load(path)`, one per file; each works without a network.

They only wrap functions of `hf_distinct.evaluation`. They are separate because importing `evaluate` takes seconds, and
because it looks for a metric class in the file itself. `evaluate` parses their import statements line by line and
misreads `import a, b`. To find a file from anywhere:

    import evaluate
    from hf_distinct.evaluation.modules import path
    metric = evaluate.load(path("caption_quality"))
"""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> str:
    """Return the file of a metric, to pass to `evaluate.load`.

    Args:
        name: "caption_quality", "caption_diversity", "caption_faults", "caption_grammar", "caption_invention",
            "caption_java", "caption_perplexity", "clip_retrieval" or "clip_score".

    Raises:
        ValueError: there is no metric of that name.
    """
    metrics = {file.stem: str(file) for file in Path(__file__).parent.glob("[a-z]*.py")}
    if name not in metrics:
        raise ValueError(f"no metric {name!r}; there are {', '.join(sorted(metrics))}.")
    return metrics[name]
