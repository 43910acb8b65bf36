"""Python on several CPU processes, as an accelerate launch would start it."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def on_processes(n: int, *command: str, cwd: Path, **variables: str) -> None:
    """Run Python on CPU processes that speak gloo, with these environment variables.

    By torchrun, which is what `accelerate launch` starts for GPUs; for CPUs it would ask for MPI.
    """
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *command],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
