"""One of two processes: the gradient of half a batch, as two processes average it; see test_clip_training.py.

python clip_loss_in_two.py RANK OUTPUT
"""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from open_clip_train.distributed import init_distributed_device_so  # noqa: E402
from test_clip_training import Halves, batch  # noqa: E402

rank, output = int(sys.argv[1]), sys.argv[2]
found = init_distributed_device_so("cpu")
assert found["world_size"] == 2 and found["global_rank"] == rank
halves = Halves()
wrapped = DistributedDataParallel(halves)  # kept: it averages gradients as long as it lives
loss = wrapped(*batch(slice(4 * rank, 4 * rank + 4)))
loss.backward()
torch.save([loss.detach(), *(each.grad for each in halves.parameters())], f"{output}/{rank}.pt")
