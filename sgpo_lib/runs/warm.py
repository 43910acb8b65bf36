"""A warm process that forks notebooks: papermill, kernel and libraries are imported once a run, not once a notebook.

    python sgpo_lib/runs/warm.py papermill IN OUT ...    # ask the process behind $SGPO_WARM, or else be papermill

It is for Linux without a GPU (`forks_safely`). Each notebook has a process and a kernel of its own as ever, so that
steps share nothing but what importing leaves. The warm process runs no operation, so that no pool of threads is lost
in a fork; it leaves when its standard input closes, so with whoever started it. A notebook leaves with the process
that asked for it, so that a kill of the graph kills what the graph runs.

Run as a file, and with the standard library alone at the top, because asking must not cost what it saves.
"""

import importlib
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

ADDRESS = "SGPO_WARM"
_IMPORTED = (
    "papermill.cli",
    "ipykernel.kernelapp",
    "ipywidgets",
    "sgpo_lib.annotation",
    "sgpo_lib.evaluation.report",
    "sgpo_lib.judges.external",
    "sgpo_lib.leader.training",
    "sgpo_lib.plots.follower",
    "sgpo_lib.plots.play",
    "sgpo_lib.steps",
)


def forks_safely() -> bool:
    """Whether what notebooks import survives a fork here: Metal does not, and with CUDA or ROCm nobody has tried."""
    return sys.platform == "linux" and not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


@contextmanager
def warm_process(threads: int) -> Iterator[dict[str, str]]:
    """Keep a warm process for as long as the block lasts; it imports when it is first asked.

    Parameters
    ----------
    threads : that notebooks compute with: pools of threads have their size from when their library was imported.

    Yields
    ------
    dict : the variables by which programs that the block starts find the process.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address, variables = f"{folder}/warm", {"OMP_NUM_THREADS": str(threads)}
        listening.bind(_socket_of(address, threads))
        listening.listen()
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listening.fileno())],
            stdin=subprocess.PIPE,
            env=os.environ | variables,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # the terminal's Ctrl-C is for the graph, which ends what it runs
        )
        try:
            yield variables | {ADDRESS: address}
        finally:
            process.kill()
            process.wait()


def serve(listening: socket.socket) -> None:
    """Fork a papermill for every connection, until standard input closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: a notebook tells its exit code to who asked
    while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
        if _IMPORTED[0] not in sys.modules:
            _import_as_a_kernel_would()
        connection, _ = ready[0].accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _run_papermill(connection)
        connection.close()


def ask(arguments: list[str]) -> int:
    """Have the warm process run papermill with this process's folder, environment and output; return its exit code.

    Raises
    ------
    OSError : if there is no such process, or it computes with another number of threads.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_socket_of(os.environ.get(ADDRESS, ""), os.environ.get("OMP_NUM_THREADS", "")))
        socket.send_fds(connection, [b"-"], [1, 2])
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        try:
            connection.sendall(json.dumps(asked).encode() + b"\n")
            return connection.recv(1)[0]
        except (OSError, IndexError):
            return 1  # papermill was killed; that is not undone by beginning again


def _socket_of(address: str, threads: int | str) -> str:
    return f"{address}-{threads}"


def _import_as_a_kernel_would() -> None:
    """Import with a notebook in sight, as tqdm and transformers choose their progress bars when imported."""
    import IPython

    get_ipython = IPython.get_ipython
    IPython.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})
    for name in _IMPORTED:
        importlib.import_module(name)
    IPython.get_ipython = get_ipython


def _run_papermill(connection: socket.socket) -> None:
    """Be the papermill that the other end of the connection asks for, for as long as the other end lives."""
    _, (out, err), _, _ = socket.recv_fds(connection, 1, 2)
    os.dup2(out, 1)
    os.dup2(err, 2)
    asked = json.loads(connection.makefile().readline())
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    kernel = _Kernel()  # forked while there is no thread and no event loop yet

    def leave_with_who_asked() -> None:
        connection.recv(1)
        with suppress(ProcessLookupError):
            os.killpg(kernel.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=leave_with_who_asked, daemon=True).start()
    from jupyter_client.provisioning import local_provisioner
    from papermill.cli import papermill

    local_provisioner.launch_kernel = kernel.launch
    try:
        code = papermill.main(asked["arguments"], standalone_mode=False) or 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([code]))
    os._exit(code)


class _Kernel:
    """A kernel's process that waits for the command; what `jupyter_client` wants to know of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self):
        fork = multiprocessing.get_context("fork")
        self._there, here = fork.Pipe()
        self._process = fork.Process(target=self._be_kernel, args=(here,))
        self._process.start()
        here.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def launch(self, command: list[str], env: dict[str, str], **_) -> "_Kernel":
        self._there.send((command, env))
        return self

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _be_kernel(self, here) -> None:
        os.setsid()
        self._there.close()  # so that the pipe ends with papermill
        command, environment = here.recv()
        os.environ.update(environment)
        from ipykernel.kernelapp import launch_new_instance

        # What else it takes from the environment, it took when it was imported.
        parent = f"--IPKernelApp.parent_handle={os.getppid()}"
        launch_new_instance(argv=[*command[command.index("-f") :], parent])


if __name__ == "__main__":
    action, *rest = sys.argv[1:]
    if action == "serve":
        sys.path[0] = str(Path(__file__).parents[2])
        serve(socket.socket(fileno=int(rest[0])))
    else:
        try:
            sys.exit(ask(rest))
        except OSError:
            os.execvp("papermill", ["papermill", *rest])
