"""One of two processes: embeds pictures of which one is broken, as recipes/train.py does, and writes what it holds.

python embed_in_two.py RANK MODELS PICTURES OUTPUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import forked
import torch
from accelerate import PartialState

from hf_distinct import ClipScorer, RLCaptionConfig
from hf_distinct.data import load_captions

rank, models, pictures, output = sys.argv[1:]
recipe = forked.module("train")

PartialState(cpu=True)
config = RLCaptionConfig(output_dir=output, use_cpu=True)
scorer = ClipScorer(f"{models}/scorer")
if rank == "1":
    del scorer.model  # it has nothing to embed
rows, embeddings = recipe.embed_once(load_captions(pictures)["train"], scorer, recipe.Settings(pictures), config)
torch.save([rows["image_id"][:], rows["row"][:], embeddings.image_embeds], f"{output}/{rank}.pt")
