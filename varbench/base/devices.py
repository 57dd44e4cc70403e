"""Whether torch has the device that a user asks for."""

from __future__ import annotations

from varbench.errors import UserError


def check_device(device: str) -> None:
    """Refuses a GPU that torch does not see, before anything is put there."""
    import torch

    kind, _, number = device.partition(":")
    seen = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= seen:
        raise UserError(
            f"device {device!r} was asked for, but torch {torch.__version__} sees {seen or 'no'} GPU{'s' if seen > 1 else ''}; take "
            "another device, install torch for CUDA, or look at `varbench env`"
        )
