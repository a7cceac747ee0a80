"""Print how long gloo waits in this process, started by test_launching.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from hf_distinct import RLCaptionConfig


def main() -> None:
    config = RLCaptionConfig(output_dir=sys.argv[2], ddp_timeout=20)
    assert config.world_size == 2
    group = torch.distributed.distributed_c10d._get_default_group()
    waits = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    Path(sys.argv[2], f"waits-{config.process_index}").write_text(str(waits))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
