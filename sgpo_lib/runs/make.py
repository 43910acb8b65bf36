"""Run the graph with one line that lives, its details in a log file, and its notebooks in warm processes.

    python -m sgpo_lib.runs.make --cores 2 --config params=params/smollm2-135m.yaml

Arguments are Snakemake's. Where the output is no terminal, there is a line for each finished step instead.
"""

import os
import re
import shlex
import shutil
import signal
import sys
import threading
from contextlib import nullcontext
from datetime import datetime
from logging import ERROR, LogRecord
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

from snakemake import cli
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from sgpo_lib.runs.progress import Progress, in_words, message_of, seconds_of_rules
from sgpo_lib.runs.warm import forks_safely, warm_process


class Line(LogHandlerBase):
    """Snakemake's events, shown on a stream that Snakemake itself does not write to."""

    writes_to_stream = writes_to_file = needs_rulegraph = False
    has_filter = has_formatter = True  # every event, untouched
    stream: TextIO
    log: Path
    timing: Path

    def __post_init__(self) -> None:
        """Begin with nothing known of the run."""
        self.progress: Progress | None = None
        self.failed = False
        self.error: str | None = None  # of the graph itself, told if no notebook's is
        self.over = threading.Event()
        self.lives = self.stream.isatty()

    def emit(self, record: LogRecord) -> None:
        """Take note of an event, and tell of those that a person waits for."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._start({rule: n for rule, n in record.stats.items() if rule not in ("all", "total")})
        elif event == LogEvent.JOB_INFO and record.rule_name != "all":
            self.progress.begin(record.jobid, record.rule_name, record.rule_msg)
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.progress.running:
            line = self.progress.end(record.job_id)
            if not self.lives:
                self._say(line)
        elif event == LogEvent.JOB_ERROR and not interrupted.is_set():
            self.failed = True
            self._say(failure(record.shellcmd, self.log))
        elif record.levelno >= ERROR:
            lines = [line for line in record.getMessage().strip().splitlines() if not line.startswith("  File ")]
            self.error = "\n".join([*lines, f"details: {self.log}"])
        elif record.msg == NOTHING_TO_BE_DONE_MSG:
            self._say("nothing to do: everything is up to date")

    def close(self) -> None:
        """Clear the line that lives, and say what ended the graph, if no notebook did."""
        if self.over.is_set():  # logging closes its handlers once more when Python ends
            return
        self.over.set()
        if self.error and not self.failed and not interrupted.is_set():
            self._say(self.error)
        elif self.lives:
            self._write("\r\x1b[2K")
        super().close()

    def _start(self, waiting: dict[str, int]) -> None:
        known = seconds_of_rules(self.timing)
        self.progress = Progress(waiting, known)
        left = self.progress.seconds_left()
        about = f", about {in_words(left)} by {self.timing}" if left else ""
        self._say(f"{self.progress.total} steps{about}; details go to {self.log}")
        if self.lives:
            threading.Thread(target=self._live, daemon=True).start()

    def _live(self) -> None:
        while not self.over.wait(1):
            with self.lock:  # no event changes what is told
                self._write("\r\x1b[2K" + self.progress.line()[: shutil.get_terminal_size().columns - 1])

    def _say(self, text: str) -> None:
        self._write(("\r\x1b[2K" if self.lives else "") + text + "\n")

    def _write(self, text: str) -> None:
        with self.lock:
            self.stream.write(text)
            self.stream.flush()


interrupted = threading.Event()


def failure(command: str, log: Path) -> str:
    """Say why a step failed: its notebook's one message, and where to read on."""
    executed = [Path(word) for word in shlex.split(command) if word.endswith(".ipynb")][1]
    message = message_of(executed)
    if message is None:
        return f"{executed.stem} ended without a message of its own; what was said: {log}"
    return f"{message}\nexecuted notebook: {executed}"


def main(arguments: list[str]) -> int:
    """Run Snakemake with these arguments, and return its exit code."""
    config = dict(word.split("=", 1) for word in arguments if re.match(r"\w+=", word))
    cores = arguments[arguments.index("--cores") + 1] if "--cores" in arguments else str(os.cpu_count())
    run = Path(config.get("params", config.get("study", "params/smollm2-135m.yaml")))
    log = Path("runs", "logs", f"{datetime.now():%Y-%m-%d-%H%M%S}.log").absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    Line.log, Line.stream = log, os.fdopen(os.dup(1), "w")
    Line.timing = run.parent.parent / "figures" / run.stem / "timing.md"
    with log.open("w") as file:  # everything that is said by whatever a step starts
        sys.stdout.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def interrupt(*_) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_line", SimpleNamespace(LogHandler=Line))
    threads = int(config.get("threads", cores))
    try:
        with warm_process(threads) if forks_safely() else nullcontext({}) as variables:
            os.environ.update(variables)
            cli.main(["--logger", "line", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except KeyboardInterrupt:
        code = 1
    if interrupted.is_set():
        print("stopped; the same command goes on from here", file=Line.stream, flush=True)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
