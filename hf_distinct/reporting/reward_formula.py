"""Describe the reward of a training for a model card: the formula with its numbers, and the meaning of each part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_distinct.text.escaping import as_code, as_markdown, plain
from hf_distinct.text.portable import portable

if TYPE_CHECKING:
    from hf_distinct.config import RLCaptionConfig

PARTS = {
    "contrastive": "how clearly the caption and its image identify each other: the mean of `contrastive_i2t` and "
    "`contrastive_t2i`",
    "contrastive_i2t": "min(log-odds of the caption against all other texts of the pool for its image, {clamp:g}) / "
    "s, where s is the logit scale of the CLIP model",
    "contrastive_t2i": "min(log-odds of the image against all other images of the pool for the caption, {clamp:g}) / "
    "s, where s is the logit scale of the CLIP model",
    "similarity": "cosine similarity of caption and image under the CLIP",
    "cider": "CIDEr-D of the caption against the captions that people wrote of the image",
}
BASELINES = {
    "none": "A(c) = R(c)",
    "greedy": "A(c) = R(c) - R(greedy caption of the image)",
    "leave_one_out": "A(c) = R(c) - mean of R over the image's other sampled captions",
}
WEIGHTINGS = {
    "raw": "w(g) = R(g)",
    "clamp": "w(g) = max(R(g), 0)",
    "softmax": "w(g) = softmax of R over the batch, with mean 1",
    "shift": "w(g) = R(g) - the lowest R of the batch",
    "constant": "w(g) = 1",
}


def describe_reward(
    rewards: Mapping[str, float],
    baseline: str,
    scorer: str,
    args: RLCaptionConfig,
    descriptions: Mapping[str, str | None] | None = None,
) -> str:
    """Return the reward of a training as Markdown.

    Args:
        rewards: the weight of each reward, by name.
        baseline: the baseline: `none`, `greedy` or `leave_one_out`.
        scorer: the CLIP that gave the reward, e.g. its open_clip name.
        args: the settings.
        descriptions: docstrings of rewards that are not built in, by name; the first line is shown.
    """
    share, alpha, beta = args.discriminator_weight, args.wtf_weight, args.kl_weight
    names = {plain(portable(name)): weight for name, weight in rewards.items()}
    total = " + ".join(f"{weight:g} {name}(c)" for name, weight in names.items())
    if share:
        total = f"(1 - {share:g}) [{total}] + {share:g} D(c)"
    loss = "- mean(A(c) l(c))"
    loss += f" - {alpha:g} mean(w(g) l(g))" if alpha else ""
    loss += f" + {beta:g} KL" if beta else ""

    known = [name for name in names if name in PARTS]
    if "contrastive" in known:  # its description refers to the two directions
        known += [name for name in ("contrastive_i2t", "contrastive_t2i") if name not in known]
    parts = {as_code(name): PARTS[name].format(clamp=args.reward_clamp) for name in known}
    for name in rewards:
        if name not in PARTS:
            first = ((descriptions or {}).get(name) or "").strip().partition("\n")[0].rstrip(". ")
            text = f"a custom reward: {as_markdown(portable(first))}" if first else "a custom reward"
            parts[as_code(portable(name))] = text
    if share:
        parts["D"] = "a small discriminator's probability, from CLIP embeddings, that a person wrote the caption"
    parts["A"] = f"the advantage: {BASELINES[baseline]}"
    parts["l"] = "the captioner's log-probability of a caption"
    if alpha:
        parts["g"] = f"captions that people wrote, weighted: {WEIGHTINGS[args.wtf_policy]}"
    if beta:
        parts["KL"] = "KL divergence from the captioner before training"
    lines = [f"- {name}: {text}." for name, text in parts.items()]
    formula = ["```text", f"R(c) = {total}", f"L    = {loss}", "```"]
    return "\n".join([*formula, "", f"Under the CLIP {as_markdown(scorer)}:", "", *lines])
