"""Put the models that the recipes made into the package, and write their cards from what was measured.

    python recipes/ship.py outputs

Takes OUTPUTS/{captioner,scorer,truth_scorer,judge}, copies what is needed to hf_distinct/models and writes
model_cards/NAME.md. The commands that make the four are in recipes/README.md.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from huggingface_hub import ModelCardData
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
MODELS = {
    "captioner": (
        "A captioner of emoji scenes by teacher forcing: the model that reinforcement learning starts from.",
        ["for part in recipes/configs/captioner/*.yaml; do python recipes/warm_up.py $part; done"],
    ),
    "scorer": (
        "A plain CLIP of emoji scenes, trained as the CLIP models are that one downloads. It gives rewards.",
        ["python recipes/train_clip.py recipes/configs/scorer.yaml"],
    ),
    "truth_scorer": (
        "A CLIP of emoji scenes that was also trained against false and broken captions. It gives rewards.",
        ["python recipes/train_clip.py recipes/configs/scorer.yaml",
         "for part in recipes/configs/truth_scorer/*.yaml; do python recipes/train_clip.py $part; done"],
    ),
    "judge": (
        "A CLIP of emoji scenes that no training of a captioner sees: another architecture than the scorers, other "
        "scenes, another seed, trained against false and broken captions. It measures.",
        ["for part in recipes/configs/judge/*.yaml; do python recipes/train_clip.py $part; done"],
    ),
}  # fmt: skip
KEPT = (
    "*.safetensors", "config.json", "generation_config.json", "preprocessor_config.json", "open_clip_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
MEANINGS = {
    "t2i_R@1": "R@1, text to image, full captions, 1,000 validation scenes",
    "t2i_R@5": "R@5, text to image",
    "i2t_R@1": "R@1, image to text",
    "logit_scale": "logit scale",
    "prefers_truth/relation": "prefers the true caption to one with the relation flipped",
    "prefers_truth/size": "... with one size flipped",
    "prefers_truth/swap": "... with two content words exchanged",
    "prefers_truth/shuffle": "... with its words shuffled",
    "prefers_truth/drop": "... with function words left out",
    "prefers_truth/cut": "... cut off in mid-phrase",
    "well_formed": "well-formed captions, greedy, 1,000 validation scenes",
    "true": "true captions",
    "details": "facts stated, of six",
    "CIDEr-D": "CIDEr-D (1.0 is what papers print as 100)",
}


def card(name: str, folder: Path) -> str:
    """The model card: what it is, how it was made, what was measured."""
    about, commands = MODELS[name]
    metrics = json.loads((folder / "metrics.json").read_text())
    parameters = sum(value.numel() for file in folder.glob("*.safetensors") for value in load_file(file).values())
    clip = name != "captioner"
    data = ModelCardData(
        license="apache-2.0",
        library_name="open_clip" if clip else "transformers",
        pipeline_tag="zero-shot-image-classification" if clip else "image-to-text",
        tags=["hf_distinct", "emoji-scenes"],
    )
    load = (
        f'hf_distinct.ClipScorer(hf_distinct.shipped("{name}"))' if clip else 'pipeline("image-to-text", model=FOLDER)'
    )
    rows = [f"| {MEANINGS[key]} | {value:.3f} |" for key, value in metrics.items() if key in MEANINGS]
    return "\n".join(
        [
            "---", data.to_yaml(), "---", "", f"# {name}", "", about, "",
            f"{parameters / 1e6:.2f} million parameters, in `hf_distinct/models/{name}`; loaded by `{load}`.",
            "", "## Made by", "", "```bash", *commands, "```", "",
            "Trained on emoji scenes, drawn by `hf_distinct.data.emoji_scenes` from Twemoji (CC-BY 4.0).", "",
            "## Measured by the same command", "", "| | |", "|---|---|", *rows, "",
            "## Limits", "", "It knows emoji scenes: 64 x 64 pixels, two emoji, the words of their grammar.", "",
        ]
    )  # fmt: skip


def main() -> None:
    """Copy and describe."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for name in MODELS:
        source, target = Path(sys.argv[1]) / name, ROOT / "hf_distinct" / "models" / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for pattern in KEPT:
            for file in source.glob(pattern):
                shutil.copy(file, target)
        (ROOT / "model_cards").mkdir(exist_ok=True)
        (ROOT / "model_cards" / f"{name}.md").write_text(card(name, source))


if __name__ == "__main__":
    main()
