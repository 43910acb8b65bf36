"""How far a run is: what is done, what runs, and how long the rest may take, told in one line."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_UNTIMED = 15.0  # seconds that a step is thought to take whose like nobody has timed, where others have been
_RULES = {
    "01_seed_dpo": ["seed_dpo"],
    "02_self_annotation": ["first_annotation", "annotation"],
    "03_dro_reweighting": ["follower"],
    "04_weighted_training": ["leader"],
    "05_evaluation": ["evaluation"],
}


@dataclass
class Progress:
    """The steps of a run, as Snakemake's events tell of them.

    Attributes
    ----------
    waiting : steps of each rule that have not begun.
    known : mean seconds of a step of each rule, as measured before; empty where nothing has been.
    running : rule, message and beginning of each job.
    finished : rule and seconds of each job.
    """

    waiting: dict[str, int]
    known: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    running: dict[int, tuple[str, str, float]] = field(default_factory=dict)
    finished: list[tuple[str, float]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Steps of this run, done or not."""
        return sum(self.waiting.values()) + len(self.running) + len(self.finished)

    def begin(self, job: int, rule: str, message: str) -> None:
        """Note that a step has begun."""
        self.waiting[rule] -= 1
        self.running[job] = rule, message.split(" (")[0], self.clock()

    def end(self, job: int) -> str:
        """Note that a step is done, and return the line that says so."""
        rule, message, begun = self.running.pop(job)
        seconds = self.clock() - begun
        self.finished.append((rule, seconds))
        return f"step {len(self.finished)} of {self.total} · {message} · {seconds:.0f} s"

    def seconds_left(self) -> float | None:
        """Seconds that the rest may take, by what is known and how this run has gone so far; None if nothing is."""
        if not self.known and not self.finished:
            return None
        foreseen = sum(self._expected(rule) for rule, _ in self.finished)
        pace = sum(seconds for _, seconds in self.finished) / foreseen if self.known and self.finished else 1.0
        left = sum(n * self._expected(rule) * pace for rule, n in self.waiting.items())
        for rule, _, begun in self.running.values():
            whole, spent = self._expected(rule) * pace, self.clock() - begun
            left += max(whole - spent, 0.05 * max(whole, spent))
        return left / max(1, len(self.running))

    def line(self) -> str:
        """What runs now, how much is done, and how long the rest may take."""
        now = " and ".join(message for _, message, _ in self.running.values()) or "between two steps"
        line = f"step {min(len(self.finished) + 1, self.total)} of {self.total} · {now}"
        left = self.seconds_left()
        if left is None:
            return line
        spent = sum(seconds for _, seconds in self.finished)
        spent += sum(self.clock() - begun for _, _, begun in self.running.values())
        share = spent / (spent + left * max(1, len(self.running)))
        return f"{line} · {share:.0%} · about {in_words(left)} left"

    def _expected(self, rule: str) -> float:
        if self.known:
            return self.known.get(rule, _UNTIMED)
        taken = [seconds for _, seconds in self.finished]
        return sum(taken) / len(taken)


def in_words(seconds: float) -> str:
    """Return a duration as a person would say it."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def seconds_of_rules(timing: Path) -> dict[str, float]:
    """Mean seconds of each rule's notebooks from the `timing.md` of a run (`report.write_run`); empty without one."""
    if not timing.is_file():
        return {}
    taken: dict[str, list[float]] = {}
    table = timing.read_text().strip().splitlines()
    heading, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    for line in lines:
        row = dict(zip(heading, line, strict=True))
        notebook = re.search(r"\d\d_[a-z_]*[a-z]", row["notebook"])
        if notebook and row.get("total"):
            taken.setdefault(notebook[0], []).append(float(row["total"]))
    return {rule: sum(t) / len(t) for notebook, t in taken.items() for rule in _RULES.get(notebook, [])}


def message_of(executed: Path) -> str | None:
    """Return the message of the error that ended an executed notebook, without its frames; None if there is none."""
    if not executed.is_file():
        return None
    for cell in json.loads(executed.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']}"
    return None
