"""What a result was made with: packages, commit, machine, memory."""

import contextlib
import importlib.util
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sgpo_lib.params import Params

_PACKAGES = ["sgpo-lib", "torch", "transformers", "trl", "peft", "numpy", "pandas", "scipy", "alpaca-eval"]


def environment(root: Path) -> dict[str, Any]:
    """Describe what a result was made with: package versions, git commit, platform, processor."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def peak_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def check_packages(params: Params) -> None:
    """Refuse params that ask for a tracker or an optimiser whose package is not installed, before any work is done."""
    missing = {
        package: f"{section}.{'optim' if package == 'bitsandbytes' else 'report_to'}"
        for section, training in (("seed_dpo", params.seed_dpo), ("leader", params.leader))
        for package in sorted(training.packages)
        if importlib.util.find_spec(package) is None
    }
    if missing:
        needed = ", ".join(f"{package} ({key})" for package, key in missing.items())
        raise ModuleNotFoundError(f"Not installed, but asked for: {needed}. Install it, or ask for something else.")
