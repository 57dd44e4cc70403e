"""Everything global that a plugin has no business with: default types, random states, switches, clocks, environment."""

from __future__ import annotations

import builtins
import gc
import hashlib
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

CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "time_ns", "process_time", "sleep")


@dataclass(frozen=True)
class _Probe:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None] | None = None


def _random_states() -> list[_Probe]:
    return [
        _Probe("the random state of torch", torch.get_rng_state, torch.set_rng_state),
        _Probe("the random state of numpy", lambda: np.random.get_state(legacy=True), np.random.set_state),
        _Probe("the random state of random", random.getstate, random.setstate),
    ]


def _switches() -> list[_Probe]:
    cuda, cpu = "cuda", "cpu"
    return [
        _Probe("torch's default type", torch.get_default_dtype, torch.set_default_dtype),
        _Probe("torch's default device", lambda: str(torch.get_default_device())),
        _Probe("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _Probe("torch's number of threads between operators", torch.get_num_interop_threads),
        _Probe("torch's anomaly detection", torch.is_anomaly_enabled),
        _Probe(
            "autocast on a CPU", lambda: torch.is_autocast_enabled(cpu), lambda on: torch.set_autocast_enabled(cpu, on)
        ),
        _Probe(
            "autocast on CUDA", lambda: torch.is_autocast_enabled(cuda), lambda on: torch.set_autocast_enabled(cuda, on)
        ),
        _Probe(
            "torch's deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        _Probe("float32 products' precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _Probe("flushing of tiny numbers", _flushes, _flush),
        _attribute("torch.backends.cudnn.enabled", torch.backends.cudnn, "enabled"),
        _attribute("torch.backends.cudnn.benchmark", torch.backends.cudnn, "benchmark"),
        _attribute("torch.backends.cudnn.deterministic", torch.backends.cudnn, "deterministic"),
        _attribute("torch.backends.cudnn.allow_tf32", torch.backends.cudnn, "allow_tf32"),
        _attribute("torch.backends.cuda.matmul.allow_tf32", torch.backends.cuda.matmul, "allow_tf32"),
        _attribute("torch.backends.mkldnn.enabled", torch.backends.mkldnn, "enabled"),
        *(
            _Probe(
                f"the {kernel} attention kernel", getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"), _sdp(kernel)
            )
            for kernel in ("flash", "mem_efficient", "math")
        ),
    ]


def _dispatch() -> list[_Probe]:
    """What stands between a call of torch and its kernel."""
    hooks = torch.nn.modules.module
    return [
        _Probe("the number of modes that see torch's functions", torch._C._len_torch_function_stack),
        _Probe("the number of modes that see torch's operators", torch._C._len_torch_dispatch_stack),
        _Probe(
            "the kernels of torch's operators", lambda: len([key for key in torch.library._impls if _is_kernel(key)])
        ),
        _Probe(
            "hooks on all modules",
            lambda: sum(len(getattr(hooks, n)) for n in vars(hooks) if n.endswith("_hooks") and "global" in n),
        ),
    ]


def _is_kernel(key: str) -> bool:
    return key.startswith("aten/") and not key.endswith("/Meta")


def _attribute(name: str, owner: Any, key: str) -> _Probe:
    return _Probe(name, lambda: getattr(owner, key), lambda value: setattr(owner, key, value))


def _sdp(kernel: str) -> Callable[[Any], None]:
    switch: Callable[[Any], None] = getattr(torch.backends.cuda, f"enable_{kernel}_sdp")
    return switch


def _flush(on: bool) -> None:
    torch.set_flush_denormal(on)


def _flushes() -> bool:
    return bool((torch.full((1,), 1e-40, dtype=torch.float32) * torch.ones(1)).item() == 0)


def _process() -> list[_Probe]:
    return [
        _Probe("the environment", _environment, _set_environment),
        _Probe("the working directory", os.getcwd, os.chdir),
        # Counts those too that were started behind the back of `threading`.
        _Probe("the number of Python threads", lambda: len(sys._current_frames())),
        _Probe("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        _Probe("the thresholds of garbage collection", gc.get_threshold, lambda counts: gc.set_threshold(*counts)),
        _Probe("the threads' switch interval", sys.getswitchinterval, sys.setswitchinterval),
        _Probe("the tracing function", sys.gettrace),
        _Probe("the profiling function", sys.getprofile),
        _Probe("what is called at garbage collection", lambda: len(gc.callbacks)),
        _Probe("the processors it may run on", lambda: getattr(os, "sched_getaffinity", lambda _: None)(0)),
        *(_attribute(f"time.{clock}", time, clock) for clock in CLOCKS),
        *(
            _attribute(f"builtins.{name}", builtins, name)
            for name in ("open", "print", "sum", "len", "isinstance", "__import__")
        ),
    ]


def _environment() -> dict[str, str]:
    """Less what torch itself sets when its counters are first used."""
    return {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}


def _set_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def _probes() -> list[_Probe]:
    return [*_random_states(), *_switches(), *_dispatch(), *_process()]


class GlobalState:
    """Global state at one moment."""

    def __init__(self) -> None:
        self._values = {probe.name: probe.read() for probe in _probes()}

    def changes(self, later: GlobalState) -> Iterator[str]:
        """What is not as it was."""
        for name, before in self._values.items():
            after = later._values[name]
            if _key(before) != _key(after):
                yield f"{name} changed{_difference(before, after)}"

    def restore(self) -> None:
        for probe in _probes():
            before = self._values[probe.name]
            if probe.write and _key(before) != _key(probe.read()):
                probe.write(before)


def _key(value: Any) -> Any:
    """Something that can be compared: random states are long, or hold arrays."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
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


def stir() -> None:
    """Random states that nobody would set."""
    for set_seed in (torch.manual_seed, np.random.seed, random.seed):
        set_seed(0x5EED1E55)


def wrong_clocks() -> Iterator[str]:
    """Clocks that were replaced before anybody looked: the real ones are built in."""
    for clock in CLOCKS:
        if type(getattr(time, clock)) is not type(len):
            yield f"time.{clock} is no clock of Python but {getattr(time, clock)!r}"


@contextmanager
def restored() -> Iterator[None]:
    """Puts global state back afterwards, whatever was done to it."""
    before = GlobalState()
    try:
        yield
    finally:
        before.restore()
