"""What kind of device this is, whose figures may stand beside another's, and how much memory is free there.
`python -m varbench.run.spread.kinds DEVICE` prints both.

Torch is asked, in a process of its own: which board it computes on is no question of numbers, which CUDA_VISIBLE_DEVICES and
the order of boards decide, and what CUDA takes of the board is given back before anything is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from varbench.measure.environment import available_memory, environment
from varbench.record import Environment
from varbench.run.children import with_last_line


@dataclass(frozen=True, kw_only=True)
class DeviceThere:
    """What a device says of itself."""

    kind: str
    free: int | None
    """Bytes that rows can take there; None where nobody can tell."""


def kind_of(found: Environment) -> str:
    """By what a record says of where it was made: a GPU's name, or a processor's with the threads that torch has."""
    return f"{found.cpu}, {found.threads} threads" if found.device == "cpu" else found.device


def device_here(device: str) -> DeviceThere:
    command = [sys.executable, "-P", "-m", __name__, device]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(with_last_line(f"torch cannot use {device} there", ended.stderr))
    return DeviceThere(**json.loads(ended.stdout.splitlines()[-1]))


def main(device: str) -> int:
    import torch

    kind = kind_of(environment(device, threads=torch.get_num_threads()))
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else available_memory()
    print(json.dumps(asdict(DeviceThere(kind=kind, free=free))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
