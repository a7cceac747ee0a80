"""Metrics for `evaluate.load(path)`, one a file; each works without a network.

They only wrap the functions of `hf_distinct.evaluation` and stand apart from them because `evaluate` takes seconds to
import and looks for its metric class in the very file it is given. `evaluate` reads their import statements line by
line and misreads `import a, b`. To find a file from anywhere:

    import evaluate
    from hf_distinct.evaluation.modules import path
    metric = evaluate.load(path("caption_quality"))
"""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> str:
    """Return the file of a metric, to be given to `evaluate.load`.

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
