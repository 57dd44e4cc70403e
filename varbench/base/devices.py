"""Whether torch has the device that a user asks for, and what is done on one of several GPUs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from varbench.errors import UserError

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
Given = TypeVar("Given")


class OnDevice(Protocol):
    device: torch.device


On = TypeVar("On", bound=OnDevice)


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


def use_device(device: str) -> None:
    """Checks it, and makes a GPU that is asked for by number the current one of this process, which is meant wherever none is
    named: by launches of kernels, streams and captures."""
    check_device(device)
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)


def on_its_device(device: torch.device) -> AbstractContextManager[Any]:
    """The GPU is the current one while it lasts."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def by_its_device(method: Callable[Concatenate[On, P], Given]) -> Callable[Concatenate[On, P], Given]:
    """Runs a method of something that lies on a device there, whatever GPU is the current one around it."""

    @functools.wraps(method)
    def inner(self: On, /, *args: P.args, **kwargs: P.kwargs) -> Given:
        with on_its_device(self.device):
            return method(self, *args, **kwargs)

    return inner
