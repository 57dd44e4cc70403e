"""What kind of device this is, whose figures may stand beside another's. `python -m varbench.run.spread.kinds DEVICE` prints it.

Torch is asked, in a process of its own: which board it computes on is no question of numbers, which CUDA_VISIBLE_DEVICES and
the order of boards decide, and what CUDA takes of the board is given back before anything is measured.
"""

from __future__ import annotations

import subprocess
import sys

from varbench.measure.environment import environment
from varbench.record import Environment
from varbench.run.children import with_last_line


def kind_of(found: Environment) -> str:
    """By what a record says of where it was made: a GPU's name, or a processor's with the threads that torch has."""
    return f"{found.cpu}, {found.threads} threads" if found.device == "cpu" else found.device


def kind_here(device: str) -> str:
    command = [sys.executable, "-P", "-m", __name__, device]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(with_last_line(f"torch cannot use {device} there", ended.stderr))
    return ended.stdout.splitlines()[-1]


def main(device: str) -> int:
    import torch

    print(kind_of(environment(device, threads=torch.get_num_threads())))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
