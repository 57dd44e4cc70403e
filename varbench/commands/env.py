"""`varbench env`: what this machine has, and where varbench keeps things."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from varbench.base import variables
from varbench.commands import add_json, usable_plugins

VARIABLES = ("XDG_CACHE_HOME", variables.DISABLE)


HELP = "versions, devices, caches and plugins of this machine"


def add_parser(subparsers: Any) -> None:
    from varbench.record.option_forms import add_arguments

    parser = subparsers.add_parser(
        "env",
        help=HELP,
        description="Prints what a result depends on: put it into a report of a problem. With --calibrate it measures what the "
        "device reaches, and keeps it.",
    )
    add_json(parser)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure products, memory and operators of a device, in less than a minute, for predictions that are no mere bounds",
    )
    add_arguments(parser, "device", device="cpu, cuda or cuda:N; default: a GPU where torch sees one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from varbench.record.option_forms import given_in

    given = given_in(args, "device")
    if args.calibrate:
        return _calibrate(given.get("device"), as_json=args.json)
    manager = usable_plugins(args)
    plugins = [manager.info(name) for name in manager.load_all()]
    facts = {
        **machine(),
        "plugins": ", ".join(f"{info.name} [{info.distribution} {info.version}]" for info in plugins),
        "plugins left out": ", ".join(problem.message for problem in manager.problems()) or "none",
        "plugins disabled": ", ".join(manager.disabled) or "none",
    }
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print("\n".join(f"{name:<17} {value}" for name, value in facts.items()))
    return 0


def _calibrate(device: str | None, *, as_json: bool) -> int:
    import torch

    from varbench.base.devices import use_device
    from varbench.measure.kept_rates import keep_rates
    from varbench.measure.rates import calibrate

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    use_device(device)
    found = calibrate(device, say=lambda text: print(f"measuring {text}", file=sys.stderr, flush=True))
    path = keep_rates(found)
    print(
        json.dumps({**asdict(found), "file": str(path)}, indent=1) if as_json else f"{path.read_text()}\nkept: {path}"
    )
    if not as_json:
        print("next: varbench plan all --hardware here; `run` and `report` predict with it from now on")
    return 0


def machine() -> dict[str, str]:
    """Facts by name, each as text; what is missing says so."""
    import torch

    from varbench.base.places import cache_root, looked_at
    from varbench.measure.environment import available_memory, environment
    from varbench.measure.harness import null_cost
    from varbench.model import c_kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found, harness = environment(device), null_cost(device)
    folder = cache_root()
    size = f"{looked_at(folder).size / 2**20:,.0f} MiB" if folder.is_dir() else "not there yet"
    variables = {**found.variables, **{name: os.environ[name] for name in VARIABLES if name in os.environ}}
    return {
        "machine": found.machine,
        "system": found.system,
        "cpu": f"{found.cpu}, {found.cores} cores usable, {torch.get_num_threads()} torch threads",
        "kernels in C": c_kernels.described(),
        "memory": f"{_gib(found.memory_bytes)}, {_gib(available_memory())} free",
        "device": found.device if torch.cuda.is_available() else "cpu: torch sees no GPU",
        "GPU": ", ".join(filter(None, (found.gpu_uuid, found.driver))) or "no figure from NVML",
        **found.versions,
        "harness": f"{harness.value * 1e6:.1f} µs a call ({harness.low * 1e6:.1f} to {harness.high * 1e6:.1f}): timing nothing",
        "cache": f"{folder} ({size})",
        "variables": ", ".join(f"{name}={value}" for name, value in variables.items()) or "none set",
    }


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"
