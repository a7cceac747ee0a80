"""What test_not_finite.py starts in two processes: nan_in_one.py RANK MODELS OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import test_not_finite  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

rank, models, output = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
reward = test_not_finite.flaky(*[2] * rank)
trainer = tiny.make_trainer(
    models, output, rewards=[reward], use_cpu=False, per_device_train_batch_size=2, **test_not_finite.OF_TWO
)
seen: list[dict[str, torch.Tensor]] = []


class Watcher(test_not_finite.TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        seen.append(tiny.weights(trainer.accelerator.unwrap_model(model)))


trainer.add_callback(Watcher())
trainer.train()
losses = torch.tensor(trainer.step_losses)
torch.save({"weights": seen, "losses": losses, "skipped": trainer.void_steps.count}, output / f"{rank}.pt")
trainer.accelerator.end_training()
