"""One of the processes that ``test_torch_sharded.py`` starts.

``python -m tests.frameworks.sharded_process RANK WORLD STORE OUT`` goes through the checks side by side with the
others, and writes to the JSON file OUT what failed, by check; "" is a check that passed.
"""

from __future__ import annotations

import datetime
import json
import sys
import traceback
import warnings
from pathlib import Path

import torch.distributed as dist

from tests.frameworks import sharded_checks, sharded_training
from tests.frameworks.sharded_tools import CHECKS

PATIENCE = datetime.timedelta(seconds=60)
"""A process that waits longer for the others gives up."""
assert CHECKS, (sharded_checks, sharded_training)  # which have filled it


def main(rank: int, world: int, store: str, out: Path) -> None:
    """Run all checks; where one fails, the others of this process may not be in step any more."""
    results: dict[str, str] = {}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=PATIENCE)
    mesh = dist.init_device_mesh("cpu", (world,))
    for name, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check(mesh)
                dist.barrier()
        except Exception:
            results[name] = traceback.format_exc()
            break
        results[name] = ""
    out.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
