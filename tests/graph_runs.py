"""The graph on a params file of its own, as a process that can be killed."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def snakemake(params_file: Path, *options: str, study: Path | None = None) -> subprocess.Popen:
    root = params_file.parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--directory",
        str(root),
        *(options or ["--quiet"]),
        "--cores",
        "2",
        "--rerun-incomplete",
        "--nolock",
        "--config",
        f"study={study}" if study else f"params={params_file}",
    ]
    return subprocess.Popen(
        [*command, f"figures={root / 'figures'}", "threads=1"],
        cwd=root,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-6000:]
    return output


def artefacts(root: Path) -> dict[str, str]:
    """Hash of every table and of every policy's weights, by path: what two equal runs must share, drafts apart."""
    files = [*root.rglob("*.parquet"), *root.rglob("*.safetensors"), *root.rglob("summary.json")]
    paths = {file.relative_to(root).as_posix(): file for file in files}
    hidden = re.compile(r"/\.|-shards/")
    return {path: hashlib.sha256(paths[path].read_bytes()).hexdigest() for path in paths if not hidden.search(path)}


def kill(process: subprocess.Popen, root: Path) -> None:
    """Kill a run of the graph, or of a notebook, with all that it started, without a warning."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _kill_kernels(root)


def _kill_kernels(root: Path) -> None:
    """Kernels live in sessions of their own; a power cut would not have spared them."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = os.readlink(process / "cwd") == str(root) and b"ipykernel" in (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mine:
            os.kill(int(process.name), signal.SIGKILL)
