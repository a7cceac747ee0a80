"""One of two processes: embeds pictures of which one is broken, as every training does, and writes what it holds.

python embed_in_two.py RANK MODELS PICTURES OUTPUT
"""

import sys

import torch
from accelerate import PartialState

from hf_distinct import ClipScorer
from hf_distinct.data import load_captions
from hf_distinct.training.training_data import embed_once

rank, models, pictures, output = sys.argv[1:]

PartialState(cpu=True)
scorer = ClipScorer(f"{models}/scorer")
rows, embeddings = embed_once(load_captions(pictures)["train"], scorer)
torch.save([rows["image_id"][:], rows["row"][:], embeddings.image_embeds], f"{output}/{rank}.pt")
torch.distributed.barrier()  # process 0 hosts the store, from which the other one may still read
