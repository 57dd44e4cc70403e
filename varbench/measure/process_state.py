"""State of a process that belongs to everyone: the one list of what a row has no business with, read, compared and put back."""

from __future__ import annotations

import builtins
import functools
import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from varbench.base.hashing import array_hash

CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "time_ns", "process_time", "sleep")


@dataclass(frozen=True)
class _Probe:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None = None
    """None for what can only be looked at, such as the number of threads."""


@dataclass(frozen=True)
class Globals:
    """State of the process that belongs to everyone, at one moment."""

    values: dict[str, Any]

    def changes(self, later: Globals) -> Iterator[str]:
        """What is not as it was, in words."""
        for name, before in self.values.items():
            after = later.values[name]
            if _key(before) != _key(after):
                yield f"{name} changed{_difference(before, after)}"

    def changed(self) -> list[str]:
        """Names of what is not as it was, of all that can be put back: the rest also changes for good reasons, as when a
        library starts a thread of its own."""
        return [probe.name for probe in self._to_put_back()]

    def restore(self) -> None:
        """Puts everything back, so that the next row is not measured under another's settings."""
        for probe in self._to_put_back():
            assert probe.write
            probe.write(self.values[probe.name])

    def _to_put_back(self) -> list[_Probe]:
        return [probe for probe in _probes() if probe.write and _key(self.values[probe.name]) != _key(probe.read())]


def reseed() -> None:
    """Other random numbers from now on: what a row draws from them it does not draw again."""
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def global_state() -> Globals:
    return Globals({probe.name: probe.read() for probe in _probes()})


@contextmanager
def restored() -> Iterator[None]:
    """Puts global state back afterwards, whatever was done to it."""
    before = global_state()
    try:
        yield
    finally:
        before.restore()


@functools.cache
def _probes() -> tuple[_Probe, ...]:
    return (*_switches(), *_random_states(), *_dispatch(), *_process())


def _random_states() -> Iterator[_Probe]:
    yield _Probe("torch random state", torch.get_rng_state, torch.set_rng_state)
    yield _Probe("numpy random state", lambda: np.random.get_state(legacy=True), np.random.set_state)
    yield _Probe("python random state", random.getstate, random.setstate)


def _switches() -> Iterator[_Probe]:
    yield _Probe("torch default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield _Probe("torch default device", lambda: str(torch.get_default_device()))
    yield _Probe("torch threads", torch.get_num_threads, torch.set_num_threads)
    yield _Probe("torch threads between operators", torch.get_num_interop_threads)
    yield _Probe("gradients", torch.is_grad_enabled, torch.set_grad_enabled)
    yield _Probe("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    for device in ("cpu", "cuda"):
        yield _Probe(
            f"autocast on {device}",
            functools.partial(torch.is_autocast_enabled, device),
            functools.partial(torch.set_autocast_enabled, device),
        )
    yield _Probe(
        "deterministic algorithms", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    )
    yield _Probe("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    yield _Probe("flushing of tiny numbers", _flushes, torch.set_flush_denormal)
    for switch in ("enabled", "benchmark", "deterministic", "allow_tf32"):
        yield _attribute(f"cudnn.{switch}", torch.backends.cudnn, switch)
    yield _attribute("cuda.matmul.allow_tf32", torch.backends.cuda.matmul, "allow_tf32")
    yield _attribute("mkldnn.enabled", torch.backends.mkldnn, "enabled")
    for kernel in ("flash", "mem_efficient", "math"):
        cuda = torch.backends.cuda
        yield _Probe(
            f"{kernel} attention kernel", getattr(cuda, f"{kernel}_sdp_enabled"), getattr(cuda, f"enable_{kernel}_sdp")
        )


def _flushes() -> bool:
    return bool((torch.full((1,), 1e-40, dtype=torch.float32) * torch.ones(1)).item() == 0)


def _dispatch() -> Iterator[_Probe]:
    """What stands between a call of torch and its kernel."""
    hooks = torch.nn.modules.module
    of_all = [name for name in vars(hooks) if name.endswith("_hooks") and "global" in name]
    yield _Probe("number of modes that see torch's functions", torch._C._len_torch_function_stack)
    yield _Probe("number of modes that see torch's operators", torch._C._len_torch_dispatch_stack)
    yield _Probe("kernels of torch's operators", lambda: sum(map(_is_kernel, torch.library._impls)))
    yield _Probe("hooks on all modules", lambda: sum(len(getattr(hooks, name)) for name in of_all))


def _is_kernel(key: str) -> bool:
    return key.startswith("aten/") and not key.endswith("/Meta")


def _process() -> Iterator[_Probe]:
    yield _Probe("environment", _environment, _set_environment)
    yield _Probe("working directory", os.getcwd, os.chdir)
    # Counts those too that were started behind the back of `threading`.
    yield _Probe("number of Python threads", lambda: len(sys._current_frames()))
    yield _Probe("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _Probe("thresholds of garbage collection", gc.get_threshold, lambda counts: gc.set_threshold(*counts))
    yield _Probe("number of calls at garbage collection", lambda: len(gc.callbacks))
    yield _Probe("switch interval of threads", sys.getswitchinterval, sys.setswitchinterval)
    yield _Probe("tracing function", sys.gettrace)
    yield _Probe("profiling function", sys.getprofile)
    yield _Probe("processors it may run on", lambda: getattr(os, "sched_getaffinity", lambda _: None)(0))
    for clock in CLOCKS:
        yield _attribute(f"time.{clock}", time, clock)
    for name in ("open", "print", "sum", "len", "isinstance", "__import__"):
        yield _attribute(f"builtins.{name}", builtins, name)


def _attribute(name: str, owner: Any, key: str) -> _Probe:
    return _Probe(name, lambda: getattr(owner, key), lambda value: setattr(owner, key, value))


_OF_COMPILERS = ("TORCHINDUCTOR_", "TRITON_")
"""Variables that torch itself sets when it first counts or compiles."""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_COMPILERS)}


def _set_environment(before: dict[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _key(value: Any) -> Any:
    """Something that can be compared: random states are long, or hold arrays."""
    if isinstance(value, torch.Tensor):
        return array_hash(value.numpy())
    if isinstance(value, tuple) and any(isinstance(part, np.ndarray) for part in value):
        return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in value)
    return value


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        return ": " + ", ".join(f"{key} from {before.get(key)!r} to {after.get(key)!r}" for key in keys)
    if isinstance(before, (bool, int, float, str, torch.dtype)):
        return f" from {before} to {after}"
    return ""
