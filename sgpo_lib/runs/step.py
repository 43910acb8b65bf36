"""Where a run keeps things: its folders, whole-or-nothing artefacts, and the record of how each was made.

A run is (params, seed, method). A step writes its artefacts into a draft, which `finish` puts in their place together
with the record `<step>.json`; a step whose record exists is complete, and stays so while it is made again. Before a
step starts, the records of all steps that it builds on are checked: that they exist, were made with the params now
asked for, and were made from each other's present outputs. A round may have a radius of its own; that is warned of and
recorded.

A run whose label ends in `+mine` is one's own: what it has not made it reads from the run that it branched from.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_lib.params.files import load_params
from sgpo_lib.params.methods import METHODS
from sgpo_lib.params.schema import Params
from sgpo_lib.runs import drafts
from sgpo_lib.runs.checks import check_all, check_made_with, check_same_inputs, input_hashes, unchanged_since
from sgpo_lib.runs.graph import STEPS, Node
from sgpo_lib.runs.provenance import check_packages, environment, peak_gib
from sgpo_lib.runs.store import read_parquet, replacing, sha256_of, write_parquet

_LABEL = re.compile(r"[A-Za-z0-9._+-]{1,100}")
_OWN = re.compile(r"(\+mine(-\d+)?)+$")


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
        if preset == "dpo" and _OWN.sub("", method) != "dpo":
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
        own = _OWN.search(self.method)
        return replace(self, params=self.params.model_copy(update={"data": data}), method=f"dpo{own[0] if own else ''}")

    @property
    def base(self) -> "Run | None":
        """The run that this one branched from: `ssapo` of `ssapo+mine`, whoever asks; None where it is nobody's own."""
        return replace(self, method=self.method.rpartition("+")[0]) if _OWN.search(self.method) else None

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
    """One step of a run: the only way to its folder, its inputs and its outputs.

    Attributes
    ----------
    finished : whether it is only looked at: `save` and `finish` leave everything as it is.
    about : where its artefacts go and why there, or when it was finished.
    writer : the process whose draft this is.
    """

    seconds: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    writer: str = field(default_factory=drafts.this_process, repr=False, compare=False)
    finished: bool = field(default=False, compare=False)
    about: str = field(default="", repr=False, compare=False)
    _inputs: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _outputs: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> str:
        """The step's name in the records of those that read it: its record's place in the run's folder."""
        return self.record_file.relative_to(self.run.folder).as_posix()

    @property
    def draft(self) -> Path:
        """Where artefacts lie until `finish`; which one says under which params they were made."""
        made_under = sha256_of(json.dumps(self.params, sort_keys=True).encode())[:12]
        return drafts.draft_folder(self.folder, self.name, made_under, self.writer)

    @property
    def source(self) -> "Step":
        """Where the step is read: of one's own run, in the run that it branched from, until it makes another."""
        base = self.run.base
        if base is None or self._is_own({}):
            return self
        there = base.step(self.name, self.round).source
        return there if there.is_complete() else self

    def _is_own(self, known: dict[str, bool]) -> bool:
        """Say whether this run has made the step, or anything that it builds on."""
        if self.key not in known:
            known[self.key] = self.is_complete() or any(before._is_own(known) for before in self.inputs)
        return known[self.key]

    def is_complete(self) -> bool:
        """Say whether the step has a record in its own folder."""
        drafts.settle(self.folder, self.name)
        return self.record_file.exists()

    def record(self) -> dict[str, Any]:
        """Read the step's record: params, inputs, outputs, metrics, seconds and environment.

        Raises
        ------
        FileNotFoundError, ValueError : saying which notebook makes what is missing or broken.
        """
        step = self.source
        if not step.is_complete():
            raise FileNotFoundError(f"{self.folder} is not complete: run {self.label} first.")
        try:
            record = json.loads(step.record_file.read_bytes())
            missing = {"params", "inputs", "outputs"} - set(record)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{step.record_file} cannot be read ({error}): run {self.label} again.") from None
        return record

    def begin(self) -> "Step":
        """Check everything this step builds on, and start an empty draft; what is finished stays until `finish`.

        Raises
        ------
        FileNotFoundError : if an input has not been made; names the notebook that makes it.
        ValueError : if an input was made with other params, or from inputs that have changed since. Other
            follower or leader params in earlier rounds are only warned of: each round may have its own.
        ModuleNotFoundError : if a training, now or in a later step, needs an optional package that is not installed.
        """
        check_all(self.inputs, self.round or 0)
        if self.name != "evaluation":
            check_packages(self.run.params)
        self._outputs.clear()
        self._inputs.clear()
        self._inputs.update(input_hashes(self))
        drafts.clear(self.folder, self.name)
        self.draft.mkdir(parents=True)
        return self

    def check(self) -> None:
        """Check that this step and all before it are complete and fit the params and each other, of all rounds.

        Raises
        ------
        FileNotFoundError, ValueError : as `begin` does, and for other follower or leader params in any round.
        """
        check_all([self], None)

    def load(self, artefact: str) -> Any:
        """Read an artefact of this step: a DataFrame, a dict, or the path of a folder.

        Raises
        ------
        FileNotFoundError, ValueError : if it is missing, or differs from what the step wrote.
        """
        recorded = self.record()["outputs"].get(artefact)
        path = self.source.folder / artefact
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run {self.label} first.")
        if sha256_of(path) != recorded:
            raise ValueError(f"{path} is damaged: it is not what was written. Run {self.label} again with redo = True.")
        if path.suffix == ".parquet":
            return read_parquet(path)
        return json.loads(path.read_text()) if path.suffix == ".json" else path

    def save(self, artefact: str, value: pd.DataFrame | dict, made_with: dict[str, float] | None = None) -> None:
        """Write a table (.parquet) or a dict (.json) to the draft, whole or not at all; not of a finished step.

        Parameters
        ----------
        made_with : params that the value itself knows it was made with, such as `{"follower.radius": 0.01}`.

        Raises
        ------
        ValueError : naming the columns that Parquet cannot hold; or if the step was opened with other params.
        """
        check_made_with(self, made_with or {})
        if self.finished:
            return
        with self.replacing(artefact) as path:
            if isinstance(value, pd.DataFrame):
                write_parquet(value, path)
            else:
                path.write_text(json.dumps(value, indent=2) + "\n")

    @contextlib.contextmanager
    def replacing(self, artefact: str) -> Iterator[Path]:
        """Give a temporary path to write a file or a folder to; it joins the draft as the artefact on success."""
        target = self.draft / artefact
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
        """Put the draft in its place, with the step's record, which makes it complete; return the record.

        Raises
        ------
        RuntimeError : if an artefact of the step has not been written since `begin`.
        ValueError : if an input was made anew since `begin`.
        """
        if self.finished:
            return self.record()
        wanted = {*STEPS[self.name].artefacts, *self._outputs}
        missing = sorted(name for name in wanted if name not in self._outputs or not (self.draft / name).exists())
        if missing:
            raise RuntimeError(f"{self.name} cannot finish: {', '.join(missing)} not written since it was opened.")
        check_same_inputs(self, self._inputs)
        record = {
            "step": self.name,
            "round": self.round,
            "method": self.run.method,
            "seed": self.run.seed,
            "params": self.params,
            "inputs": self._inputs,
            "outputs": self._outputs,
            "metrics": metrics or {},
            "seconds": self.seconds,
            "peak_gib": round(peak_gib(), 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(self.run.params.root),
        }
        content, since = json.dumps(record, indent=2) + "\n", unchanged_since(self, record)
        drafts.publish(self.draft, self.folder, self.record_file.name, content, since)
        shutil.rmtree(self.shards, ignore_errors=True)
        return record
