"""What test_two_processes.py launches: train on this process's share, and let process 0 write down what came of it.

accelerate launch ... train.py MODELS OUTPUT '{"max_steps": 3, ...}'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tiny
import torch
from accelerate.utils import gather_object


def main() -> None:
    models, output, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    # The choice of CPU and gloo is left to RLCaptionConfig, as in a launched recipe.
    trainer = tiny.make_trainer(models, output, use_cpu=False, **settings)
    trainer.train()
    accelerator = trainer.accelerator
    losses = accelerator.gather(torch.tensor([trainer.step_losses])).mean(dim=0)
    captions = trainer.caption(tiny.scenes(5))
    found = {
        "processes": gather_object([os.getpid()]),
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        "losses": losses,
        "captions": gather_object([captions]),
        "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        "discriminator": trainer.discriminator.discriminator.state_dict(),
        "memory": list(trainer.appraiser.memory),
        "log": [line for line in trainer.state.log_history if "loss" in line],
    }
    if accelerator.is_main_process:
        torch.save(found, output / "found.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
