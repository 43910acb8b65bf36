"""Run a command whose notebooks start at once: their kernels are forked from a process that has imported everything.

    python sgpo_lib/runs/warm.py snakemake --cores 2 ...

A run is a dozen notebooks, and each would import PyTorch, transformers, PEFT and TRL anew, for some five seconds. Here
this process imports them once, while the command starts; Jupyter finds a kernel `python3` that is a small program,
which asks this process to fork and then stands for the fork: what interrupts or kills the one reaches the other. Each
kernel is a process of its own as before, in which nothing has been computed. Where processes cannot be forked
nothing is gained and nothing lost: kernels then start as ever.

This file is a program and imports no more than Python itself until it has to.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_IMPORTED = (
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "sgpo_lib.plots.follower",
    "sgpo_lib.plots.play",
    "sgpo_lib.evaluation.comparison",
    "sgpo_lib.steps",
    "trl.trainer.dpo_trainer",
    "transformers.models.llama.modeling_llama",
)


def main(command: list[str]) -> int:
    """Run the command, and fork a kernel whenever one of its notebooks asks for one, until the command ends."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "kernels/python3/kernel.json")
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, __file__, "--kernel", "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3 (forked)", "language": "python"}))
        address = str(Path(folder, "socket"))
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("JUPYTER_PATH")])])
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to answer
            running = subprocess.Popen(
                command,
                env=os.environ | {"JUPYTER_PATH": path, "SGPO_WARM_KERNELS": address},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            signal.signal(signal.SIGTERM, lambda *_: running.terminate())
            for name in _IMPORTED:
                if running.poll() is None:  # there may be nothing to be done
                    importlib.import_module(name)
            kernels: set[int] = set()
            while running.poll() is None:
                if select.select([server], [], [], 0.1)[0]:
                    kernels.add(_fork(server))
                kernels -= {pid for pid in kernels if os.waitpid(pid, os.WNOHANG)[0]}
    return running.returncode


def _fork(server: socket.socket) -> int:
    """Have a child process become the kernel that is asked for; return its process id."""
    asking, _ = server.accept()
    message, descriptors, *_ = socket.recv_fds(asking, 2**20, 3)
    child = os.fork()
    if not child:
        try:
            server.close()
            _be_kernel(json.loads(message), asking, descriptors)
        finally:
            os._exit(1)
    asking.close()
    for descriptor in descriptors:
        os.close(descriptor)
    return child


def _be_kernel(asked: dict, asking: socket.socket, descriptors: list[int]) -> None:
    """Take on what the asking program has, and run the kernel to its end."""
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # or it would say how to connect to it
    os.chdir(asked["folder"])
    sys.path[0] = ""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" in os.environ:  # read when the library was loaded, in the parent
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    threading.Thread(target=_obey, args=[asking], daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=["-f", asked["connection_file"]])
    os._exit(0)


def _obey(asking: socket.socket) -> None:
    """Pass on interruptions; end when the program that stands for this kernel is gone."""
    while asking.recv(1):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


def stand_for_kernel(connection_file: str) -> None:
    """Ask for a fork and live as long as it does; if there is nobody to ask, be the kernel."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(os.environ["SGPO_WARM_KERNELS"])
        except (KeyError, OSError):
            os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", connection_file])
        asked = {"connection_file": connection_file, "folder": os.getcwd(), "environment": dict(os.environ)}
        signal.signal(signal.SIGINT, lambda *_: asking.send(b"i"))
        socket.send_fds(asking, [json.dumps(asked).encode()], [0, 1, 2])
        # Nothing is ever sent: the socket can be read when the kernel has ended. Jupyter may end without a word.
        jupyter = os.getppid()
        while os.getppid() == jupyter and not select.select([asking], [], [], 0.5)[0]:
            pass


if __name__ == "__main__":
    if sys.argv[1] == "--kernel":
        stand_for_kernel(sys.argv[2])
    else:
        sys.path[0] = str(Path(__file__).parents[2])
        sys.exit(main(sys.argv[1:]))
