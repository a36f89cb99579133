"""DTensors and FSDP2: real processes, each with its shards, that clip as one process does the whole gradients.

The checks are in ``sharded_checks.py`` and ``sharded_training.py``; here they are started, by twos and by fours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gradclip_core as gc

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = [
    name
    for module in ("sharded_checks.py", "sharded_training.py")
    for name in re.findall(r"^@check\ndef (\w+)", (HERE / module).read_text(), re.MULTILINE)
]
PATIENCE = 240
"""Seconds for all checks of one world. They take some ten, most of it for importing torch."""


@pytest.fixture(scope="module", params=[2, 4], ids=["2-processes", "4-processes"])
def outcomes(request: Any, tmp_path_factory: Any) -> list[dict[str, str]]:
    """What failed on each process of a world."""
    room, world = tmp_path_factory.mktemp("world"), request.param
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    # One thread each: the processes share the machine.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.frameworks.sharded_process"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(room / "store"), str(room / f"{rank}.json")],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=PATIENCE)[0])
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)
    return [json.loads((room / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.shows("torch", "sharded", "approximate")
@pytest.mark.parametrize("name", NAMES)
def test_sharded(name: str, outcomes: list[dict[str, str]]) -> None:
    failed = [outcome.get(name, "an earlier check failed") for outcome in outcomes]
    assert not any(failed), "\n".join(f"process {rank}: {text}" for rank, text in enumerate(failed) if text)


def test_a_world_of_one(tmp_path: Path) -> None:
    """Nobody to ask: a DTensor is clipped as the tensor that it holds."""
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        x = distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
        clipped, info = gc.clip_by_global_norm([x, x], 1.0)
        assert clipped[0] is clipped[1]
        assert (info.norm, info.norms) == (5.0, {"0": 5.0, "1": 5.0})
        assert gc.clip_by_global_norm_([x], 1.0) == info
        assert torch.equal(x.to_local(), clipped[0].to_local())
        assert torch.equal(x.to_local(), gc.clip_by_global_norm(torch.tensor([3.0, 4.0]), 1.0)[0])
    finally:
        dist.destroy_process_group()
