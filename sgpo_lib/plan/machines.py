"""Machines: memory and rates, of GPUs as their makers state them and of two CPU cores as measured."""

import math
import os
from dataclasses import dataclass

import torch

GIB = 2**30
USABLE = 0.9  # of a GPU's memory: CUDA itself and fragmentation take the rest


@dataclass(frozen=True)
class Rates:
    """Effective speed of one device at each kind of work, in units per second.

    Attributes
    ----------
    generation, scoring, training : FLOP/s.
    bandwidth : bytes/s at which a decoding step reads weights and cache; infinite where arithmetic decides.
    """

    generation: float
    scoring: float
    training: float
    bandwidth: float = math.inf


@dataclass(frozen=True)
class Machine:
    """What the run is to be done on.

    Attributes
    ----------
    memory : bytes per device.
    n : devices; training shards over all of them.
    n_generating : devices that generate and score at the same time. The notebooks use one.
    rates : None where nothing is known about the speed.
    """

    name: str
    memory: float
    n: int = 1
    n_generating: int = 1
    rates: Rates | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is planned as GPUs rather than as this computer's CPU."""
        return self.name != "CPU"


# Makers' data sheets: memory in GiB, dense bfloat16 TFLOP/s, memory bandwidth in TB/s.
GPUS = {
    "H200-141GB": (139.8, 989, 4.8),
    "H100-80GB": (79.6, 989, 3.35),
    "A100-80GB": (79.3, 312, 2.04),
    "A100-40GB": (39.5, 312, 1.56),
    "L40S-48GB": (44.5, 362, 0.864),
    "A6000-48GB": (47.5, 155, 0.768),
    "RTX4090-24GB": (23.6, 165, 1.01),
    "A10G-24GB": (22.1, 70, 0.6),
    "L4-24GB": (22.1, 121, 0.3),
}


# Shares of the peak that are assumed on GPUs, none of them measured for this project: training and scoring of long
# sequences in plain PyTorch, and of the bandwidth in transformers' decoding, where launching kernels costs the rest.
TRAINING, SCORING, DECODING = 0.35, 0.40, 0.20


# Measured on two cores of a Xeon with AMX: `benchmarks/plan_predicts_measured_times.py` prints them. Scoring is in
# float32, at a third of the 6.8e11 that were measured in bfloat16: the same answers took 2.9 times as long.
TWO_CPU_CORES = Rates(generation=1.7e11, scoring=2.3e11, training=2.8e11)


def find_machine(gpu: str | None = None, n_gpus: int | None = None, n_generating: int = 1) -> Machine:
    """Return the named GPUs, else those that torch finds, else this computer's CPU.

    Raises
    ------
    ValueError : if no such GPU is known.
    """
    if gpu is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gib = properties.total_memory / GIB
        found = properties.name.replace(" ", "")
        same = [name for name, known in GPUS.items() if name.split("-")[0] in found and known[0] > gib - 2]
        rates = _gpu_rates(min(same, key=lambda name: GPUS[name][0])) if same else None
        n = n_gpus or torch.cuda.device_count()
        return Machine(properties.name, properties.total_memory, n, min(n, n_generating), rates)
    if gpu is None:
        return Machine("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1, 1, TWO_CPU_CORES)
    if gpu not in GPUS:
        raise ValueError(f"There is no GPU {gpu!r} in the table; there are: {', '.join(GPUS)}.")
    n = n_gpus or 1
    return Machine(gpu, GPUS[gpu][0] * GIB, n, min(n, n_generating), _gpu_rates(gpu))


def _gpu_rates(name: str) -> Rates:
    _, tflops, terabytes = GPUS[name]
    peak = tflops * 1e12
    return Rates(SCORING * peak, SCORING * peak, TRAINING * peak, DECODING * terabytes * 1e12)
