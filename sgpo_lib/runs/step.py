"""Where a run keeps things: its folders, whole-or-nothing artefacts, and the record of how each was made.

A run is (params, seed, method). Every step writes its artefacts and then, last, its record
`<step>.json`; a step whose record exists is complete. Before a step starts, the records of all steps
that it builds on are checked: that they exist, were made with the params now asked for, and were made
from each other's present outputs. A round may have a radius of its own; that is warned of and recorded.
"""

import contextlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_lib.params.files import default_of, load_params
from sgpo_lib.params.methods import METHODS
from sgpo_lib.params.schema import Params
from sgpo_lib.runs.graph import STEPS, Node
from sgpo_lib.runs.provenance import check_packages, environment, peak_gib
from sgpo_lib.runs.store import read_parquet, remove_leftovers, replacing, sha256_of, write_parquet

_LABEL = re.compile(r"[A-Za-z0-9._+-]{1,100}")


@dataclass(frozen=True)
class Run:
    """One (params, seed, method) and its folder, `<root>/<output_dir>/<params name>/seed-<seed>`."""

    params: Params
    seed: int
    method: str

    @classmethod
    def open(
        cls,
        params_file: str | Path,
        seed: int = 0,
        method: str = "ssapo",
        overrides: dict[str, Any] | str | None = None,
    ) -> "Run":
        """Read the params and find the run's folder; creates nothing.

        Parameters
        ----------
        params_file, overrides : see `sgpo_lib.params.load_params`.
        method : a key of `sgpo_lib.params.METHODS`, with an optional label that gives a variant a folder
            of its own, such as "ssapo+radius-0.03".

        Raises
        ------
        ValueError : also if there is no such method, or its label is no part of a folder's name.
        """
        preset, plus, label = method.partition("+")
        if preset not in METHODS:
            raise ValueError(f"There is no method {preset!r}; there are: {', '.join(METHODS)}.")
        if plus and not _LABEL.fullmatch(label):
            raise ValueError(
                f"{method!r}: a label names a folder, so it is made of letters, digits and . _ + - alone, such as "
                f"'{preset}+radius-0.03'."
            )
        if preset == "dpo" and method != "dpo":
            raise ValueError(f"{method!r}: the seed is shared by all methods, so that dpo can have no label.")
        run = cls(load_params(params_file, overrides, preset), int(seed), method)
        return run.seed_only if preset == "dpo" else run

    @property
    def folder(self) -> Path:
        """The run's folder, shared by all methods."""
        return self.params.root / self.params.output_dir / self.params.name / f"seed-{self.seed}"

    @property
    def rounds(self) -> range:
        """The rounds of self-annotation, 1..T; none for `dpo`."""
        return range(1, self.params.n_rounds + 1)

    @property
    def seed_only(self) -> "Run":
        """The run that stops at the labelled seed, `dpo`; all methods share it."""
        data = self.params.data.model_copy(update={"n_prompts": []})
        return replace(self, params=self.params.model_copy(update={"data": data}), method="dpo")

    def step(self, name: str, round: int | None = None) -> "Step":
        """Return a step of this run: `seed_dpo`, `annotation`, `follower`, `leader` or `evaluation`.

        Parameters
        ----------
        round : 1..T for `annotation`, `follower` and `leader`.
        """
        per_round = name in ("annotation", "follower", "leader")
        if name not in STEPS:
            raise ValueError(f"There is no step {name!r}; the steps are {', '.join(STEPS)}.")
        if per_round and not (isinstance(round, int) and round in self.rounds):
            raise ValueError(
                f"round is {round!r}, but these params have rounds 1 to {self.params.n_rounds}; "
                "add a number to data.n_prompts for another round."
            )
        return Step(self, name, round if per_round else None)


@dataclass(frozen=True)
class Step(Node):
    """One step of a run: the only way to its folder, its inputs and its outputs."""

    seconds: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    _outputs: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Read the step's record: params, inputs, outputs, metrics, seconds and environment.

        Raises
        ------
        FileNotFoundError, ValueError : saying which notebook makes what is missing or broken.
        """
        if not self.record_file.exists():
            raise FileNotFoundError(f"{self.folder} is not complete: run {self.label} first.")
        try:
            record = json.loads(self.record_file.read_bytes())
            missing = {"params", "inputs", "outputs"} - set(record)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.record_file} cannot be read ({error}): run {self.label} again.") from None
        return record

    def begin(self) -> "Step":
        """Check everything this step builds on, and clear its own record so that it counts as incomplete.

        Raises
        ------
        FileNotFoundError : if an input has not been made; names the notebook that makes it.
        ValueError : if an input was made with other params, or from inputs that have changed since. Other
            follower or leader params in earlier rounds are only warned of: each round may have its own.
        ModuleNotFoundError : if a training, now or in a later step, needs an optional package that is not installed.
        """
        _check_all(self.inputs, self.round or 0)
        if self.name != "evaluation":
            check_packages(self.run.params)
        self._outputs.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record_file.unlink(missing_ok=True)
        remove_leftovers(self.folder)  # of a step that was killed while it wrote
        return self

    def check(self) -> None:
        """Check that this step and all before it are complete and fit the params and each other, of all rounds.

        Raises
        ------
        FileNotFoundError, ValueError : as `begin` does, and for other follower or leader params in any round.
        """
        _check_all([self], None)

    def _check(self, round_at_hand: int | None) -> None:
        record = self.record()
        asked = self.params
        newer = {key: default_of(key) for key in asked}  # params that the record does not know were at their defaults
        made = newer | record["params"]
        differing = [
            f"{key}: made with {made.get(key)!r}, asked for {asked.get(key)!r}"
            for key in sorted(asked | made)
            if asked.get(key) != made.get(key)
        ]
        if differing:
            message = f"{self.folder} was made with other params:\n  " + "\n  ".join(differing)
            if self.name in ("follower", "leader") and round_at_hand not in (None, self.round):
                # An earlier round's move is history, and to go on from it with another radius is a fair question.
                warnings.warn(message, stacklevel=5)
            else:
                apart = "" if self.owner == "dpo" else "a method label such as 'ssapo+mine' or "
                raise ValueError(
                    f"{message}\nAsk for the same values, run {self.label} again, or keep both: {apart}a copied "
                    "params file has its own folder."
                )
        present = self._input_hashes()
        for source, digest in record["inputs"].items():
            if present.get(source) != digest:
                raise ValueError(f"{source} has changed since {self.folder} was made from it: run {self.label} again.")

    def _input_hashes(self) -> dict[str, str]:
        """Hash of what each input step left, by its record, and of the data file where the step reads one."""
        hashes = {step._key: step._digest() for step in self.inputs}
        if self.data_file:
            hashes[self.run.params.data.source] = sha256_of(self.data_file)
        return hashes

    def load(self, artefact: str) -> Any:
        """Read an artefact of this step: a DataFrame, a dict, or the path of a folder.

        Raises
        ------
        FileNotFoundError, ValueError : if the artefact is missing, or differs from what the step wrote.
        """
        path = self.folder / artefact
        recorded = self.record()["outputs"].get(artefact)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run {self.label} first.")
        if sha256_of(path) != recorded:
            raise ValueError(f"{path} is damaged: it is not what the step wrote. Run {self.label} again.")
        if path.suffix == ".parquet":
            return read_parquet(path)
        return json.loads(path.read_text()) if path.suffix == ".json" else path

    def save(self, artefact: str, value: pd.DataFrame | dict) -> Path:
        """Write a table (.parquet) or a dict (.json), whole or not at all.

        Raises
        ------
        ValueError : naming the columns that Parquet cannot hold.
        """
        with self.replacing(artefact) as path:
            if isinstance(value, pd.DataFrame):
                write_parquet(value, path)
            else:
                path.write_text(json.dumps(value, indent=2) + "\n")
        return self.folder / artefact

    @contextlib.contextmanager
    def replacing(self, artefact: str) -> Iterator[Path]:
        """Give a temporary path to write a file or a folder to; it takes the artefact's name on success."""
        target = self.folder / artefact
        with replacing(target) as temporary:
            yield temporary
        self._outputs[artefact] = sha256_of(target)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall time of the block to `seconds[part]` (generate, score, follower, train, ...)."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def finish(self, metrics: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the step's record, which makes it complete.

        Raises
        ------
        RuntimeError : if an artefact of the step has not been written.
        """
        missing = set(STEPS[self.name].artefacts) - set(self._outputs)
        if missing:
            raise RuntimeError(f"{self.name} cannot finish: {', '.join(sorted(missing))} not written.")
        record = {
            "step": self.name,
            "round": self.round,
            "method": self.run.method,
            "seed": self.run.seed,
            "params": self.params,
            "inputs": self._input_hashes(),
            "outputs": self._outputs,
            "metrics": metrics or {},
            "seconds": self.seconds,
            "peak_gib": round(peak_gib(), 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(self.run.params.root),
        }
        with replacing(self.record_file) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(self.shards, ignore_errors=True)
        return record

    @property
    def _key(self) -> str:
        return self.record_file.relative_to(self.run.folder).as_posix()

    def _digest(self) -> str:
        return sha256_of(json.dumps(self.record()["outputs"], sort_keys=True).encode())


def _check_all(steps: list[Step], round_at_hand: int | None) -> None:
    """Check steps and all that they build on, each once, the earliest first.

    Other follower or leader params are only warned of in rounds but the one at hand; None forgives no round.
    """
    done: set[str] = set()

    def visit(step: Step) -> None:
        if step._key not in done:
            done.add(step._key)
            for before in step.inputs:
                visit(before)
            step._check(round_at_hand)

    for step in steps:
        visit(step)
