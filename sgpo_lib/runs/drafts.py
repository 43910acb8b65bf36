"""A step's work while it is unfinished: it lies beside what is finished, and takes its place whole.

A draft is a hidden folder that one process writes. When the record lies in it, it is complete, and from that moment
the step is the new one: what a kill leaves unmoved, whoever reads the step next moves. Without a record it is nothing.

Knows folders and processes, not what a step is.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sgpo_lib.runs.store import remove, replacing

_SUFFIX = ".draft"


def this_process() -> str:
    """Return what tells this process from others, also those of other machines that share the folder."""
    return f"{socket.gethostname().replace('.', '-')}.{os.getpid()}"


def draft_folder(folder: Path, step: str, made_under: str, writer: str) -> Path:
    """Return where a process writes a step, under the params whose hash is `made_under`."""
    return folder / f".{step}.{made_under}.{writer}{_SUFFIX}"


def publish(draft: Path, into: Path, record: str, content: str, since: float | None = None) -> None:
    """Complete a draft by its record, a file of that name, and put all of it in its place.

    Parameters
    ----------
    since : the record's time, in seconds of the epoch; None for now.
    """
    with replacing(draft / record) as temporary:
        temporary.write_text(content)
        if since is not None:
            os.utime(temporary, (since, since))
    _move(draft, into, record)


def settle(folder: Path, step: str) -> None:
    """Put complete drafts in their place whose process was killed before it had."""
    for draft in _abandoned(folder, step):
        if (draft / f"{step}.json").exists():
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                _move(
                    draft.rename(draft.with_name(f".{step}.settled.{this_process()}{_SUFFIX}")), folder, f"{step}.json"
                )


def clear(folder: Path, step: str) -> None:
    """Remove drafts that nobody will complete: those of processes that are gone, and this one's."""
    settle(folder, step)
    for draft in _abandoned(folder, step):
        remove(draft)


def _move(draft: Path, into: Path, record: str) -> None:
    for part in sorted(draft.iterdir(), key=lambda part: part.name == record):
        if part.is_dir():
            remove(into / part.name)
        os.replace(part, into / part.name)
    draft.rmdir()


def _abandoned(folder: Path, step: str) -> Iterator[Path]:
    host, mine = this_process().split(".")
    for draft in folder.glob(f".{step}.*{_SUFFIX}"):
        *_, writers_host, pid, _ = draft.name.split(".")
        if writers_host == host and (pid == mine or not _is_alive(int(pid))):
            yield draft


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
