"""Copy the trained models of emoji scenes into the package, and write their model cards.

It needs a checkout, in which it writes:

    python recipes/ship.py outputs

The recipe reads OUTPUTS/{captioner,scorer,truth_scorer,judge}, copies the files that loading needs to
hf_distinct/models, and writes model_cards/NAME.md. recipes/README.md has the commands that train the four models.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from hf_distinct.data.emoji.dataset import LICENSE, emoji_scenes
from hf_distinct.hub.model_card import Sample, write_model_card
from hf_distinct.inference.dataset_captions import write_captions
from hf_distinct.inference.pipelines import load_captioner

ROOT = Path(__file__).parent.parent
MODELS = {
    "captioner": (
        "A captioner of emoji scenes, trained by teacher forcing. Reinforcement learning starts from it.",
        ["for part in recipes/configs/captioner/*.yaml; do python recipes/warm_up.py $part; done"],
    ),
    "scorer": (
        "A CLIP of emoji scenes, trained as published CLIP models are. It gives the reward.",
        ["python recipes/train_clip.py recipes/configs/scorer.yaml"],
    ),
    "truth_scorer": (
        "A CLIP of emoji scenes, also trained against false and broken captions. It gives the reward.",
        ["python recipes/train_clip.py recipes/configs/scorer.yaml",
         "for part in recipes/configs/truth_scorer/*.yaml; do python recipes/train_clip.py $part; done"],
    ),
    "judge": (
        "A CLIP of emoji scenes that only measures: no captioner is trained with it. Its architecture, scenes and "
        "seed differ from those of the scorers, and it was trained against false and broken captions.",
        ["for part in recipes/configs/judge/*.yaml; do python recipes/train_clip.py $part; done"],
    ),
}  # fmt: skip
KEPT = (
    "*.safetensors", "config.json", "generation_config.json", "preprocessor_config.json", "open_clip_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
LOADING = {
    "captioner": "from transformers import pipeline  # on transformers 5: from hf_distinct import pipeline\n\n"
    'captioner = pipeline("image-to-text", model="hf_distinct/models/{name}")',
    "clip": 'from hf_distinct import ClipScorer, shipped\n\nclip = ClipScorer(shipped("{name}"))',
}
VALIDATION_SEED = 50 + 43  # that of warm_up.py in the last part of the captioner's training
CONFIGS = ROOT / "recipes" / "configs"
LIMITS = ["It knows emoji scenes: 64 x 64 pixels, two emoji, the words of their grammar."]


def copy_model(source: Path, target: Path) -> None:
    """Copy the files that loading a model needs."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for pattern in KEPT:
        for file in source.glob(pattern):
            shutil.copy(file, target)


def samples_of(folder: Path, count: int = 6) -> list[Sample]:
    """Caption some scenes of the validation split on which the captioner was measured."""
    scenes = emoji_scenes("validation", 1000, VALIDATION_SEED).select(range(0, 1000, -(-1000 // count)))
    model, tokenizer, image_processor = load_captioner(folder)
    captions = write_captions(model.eval(), tokenizer, image_processor, scenes, batch_size=count)
    said = zip(scenes["image"], map(str, captions), scenes["captions"], strict=True)
    return [Sample(image, {"the captioner": caption, "a person": people[0]}) for image, caption, people in said]


def card_of(name: str, folder: Path) -> dict[str, Any]:
    """Collect the contents of a model card, as arguments of `write_model_card`."""
    about, commands = MODELS[name]
    metrics = json.loads((folder / "metrics.json").read_text())
    steps = metrics.pop("steps")
    parameters = sum(value.numel() for file in folder.glob("*.safetensors") for value in load_file(file).values())
    kind = "captioner" if name == "captioner" else "clip"
    log = folder / "training_log.json"
    last = sorted([*CONFIGS.glob(f"{name}.yaml"), *CONFIGS.glob(f"{name}/*.yaml")])[-1]
    return {
        "model_name": name,
        "kind": kind,
        "about": f"{about}\n\n{parameters / 1e6:.2f} million parameters, in `hf_distinct/models/{name}`. The section "
        f"on training describes its last part, {steps:,} steps.",
        "data": "emoji scenes",
        "data_license": LICENSE,
        "model_license": "apache-2.0",
        "loading": LOADING[kind].format(name=name),
        "metrics": {"1,000 validation scenes": metrics},
        "samples": samples_of(folder) if kind == "captioner" else (),
        "log_history": json.loads(log.read_text()) if log.is_file() else (),
        "made_by": commands,
        "settings": yaml.safe_load(last.read_text()),
        "limits": LIMITS,
        "file_name": f"{name}.md",
    }


def main() -> None:
    """Copy the models and write their cards."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    missing = [name for name in MODELS if not (Path(sys.argv[1]) / name / "metrics.json").is_file()]
    if missing:
        raise SystemExit(f"ship.py: error: {sys.argv[1]} has no trained {', '.join(missing)}; train them first.")
    for name in MODELS:
        source = Path(sys.argv[1]) / name
        copy_model(source, ROOT / "hf_distinct" / "models" / name)
        write_model_card(ROOT / "model_cards", **card_of(name, source))


if __name__ == "__main__":
    main()
