"""What test_full_disk.py starts: full_disk.py MODELS FOLDER tmpfs|/dev/full. Its last line is what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tiny

models, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
disk = folder / "disk"
settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "memory_batches": 1}

undisturbed = tiny.make_trainer(models, folder / "undisturbed", **settings)
undisturbed.train()
size = sum(path.stat().st_size for path in (folder / "undisturbed" / "checkpoint-1").rglob("*"))

if kind == "tmpfs":
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size)}", "tmpfs", disk], check=True)
else:
    (disk / "checkpoint-2").mkdir()
    (disk / "checkpoint-2" / "optimizer.pt").symlink_to(kind)

error = ""
try:
    tiny.make_trainer(models, disk, **settings).train()
except OSError as caught:
    error = str(caught)
left = sorted(path.name for path in disk.iterdir())

if kind == "tmpfs":
    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
resumed = tiny.make_trainer(models, disk, **settings)
resumed.train(resume_from_checkpoint="true")
found = {
    "error": error,
    "left": left,
    "resumed_from": 4 - len(resumed.step_losses),
    "losses": resumed.step_losses,
    "undisturbed": undisturbed.step_losses,
    "same_weights": not tiny.moved(tiny.weights(undisturbed.model), resumed.model),
}
print(json.dumps(found))  # noqa: T201  read by the test
