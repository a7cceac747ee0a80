"""One of two processes: a step of the scorer's training on a part of the batch; see test_scorer_trainer.py.

python scorer_in_two.py RANK MODELS OUTPUT
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "rewards")]
from test_scorer_trainer import a_step  # noqa: E402

rank, models, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2 and accelerator.process_index == rank
torch.save(a_step(Path(models), accelerator, slice(0, 3) if rank == 0 else slice(3, 4)), f"{output}/{rank}.pt")
