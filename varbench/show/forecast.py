"""What a run would do: its rows with their plans' work, how many processes, how long by the roofline, what is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varbench.measure.environment import environment
from varbench.plan.cost import predict, work
from varbench.record import Record
from varbench.record.option_forms import in_words
from varbench.run.conduct import PARTS
from varbench.run.findings import Looks, Seen
from varbench.run.fits import misfits
from varbench.run.kept_parts import KeptParts
from varbench.run.messages import Ahead, Trained
from varbench.run.prepare import Run, hardware_like
from varbench.run.session import parts
from varbench.show import formatting

_START_SECONDS = 4.0
"""What a process takes before it is of use."""


@dataclass(frozen=True, kw_only=True)
class ForecastRow:
    row: str
    weights: str
    share: float | None
    """Of the full model's work; None without a plan."""
    call_seconds: float | None
    done: bool
    """Whether its record is there, complete and of the same inputs."""
    cached: tuple[str, ...]
    """What an earlier run on this machine has left of it, and is taken over: `quality`, `memory`."""
    trouble: str | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    title: str
    """What the run is asked that another of the same command is not."""
    rows: tuple[ForecastRow, ...]
    processes: int
    weights: dict[str, str | None]
    """By recipe, where its weights lie ready: `shipped` or `cache`; None where they would be trained."""
    seconds: float | None
    bound: bool
    """Whether these are a bound: nobody measured what the device reaches."""
    part_seconds: dict[str, float]
    """Of a part of each kind as the live display counts them; a training is none that could be predicted here."""
    out: str


def forecast(run: Run, out: Path, done: dict[str, Record], *, weights: Ahead) -> Forecast:
    options = run.options
    here = options.device == "cpu" and options.executor == "local"
    hardware = hardware_like("cpu", environment("cpu").cores) if here else None
    full: int | None = None
    too_large = misfits(run, free=run.available_memory) if options.device == "cpu" else {}
    cached = {name: () if name in done else _cached(run, name, out, weights) for name in run.rows}
    lines, image_seconds, speed_seconds = [], 0.0, 0.0
    for name, row in run.rows.items():
        failure = row.resolved.failure
        share = call = None
        if row.plan is not None:
            counted = work(row.plan, batch=options.batch, dtype=options.dtype, device=options.device)
            full = full or counted.transformer_flops
            share = counted.transformer_flops / full
            if hardware is not None:
                call = predict(counted, hardware).total
        if call is not None and name not in done:
            images = options.images if run.is_scored(name) and "quality" not in cached[name] else 0
            looks = 0 if "memory" in cached[name] else 10
            timed = 1.5 * options.count * call + 4 * call  # the fewest pairs; a noisy machine takes more
            image_seconds += looks * call + images / options.batch * call
            speed_seconds += run.rounds_of(name) * timed
        lines.append(
            ForecastRow(
                row=name,
                weights=row.resolved.weight_set,
                share=share,
                call_seconds=call,
                done=name in done,
                cached=cached[name],
                trouble=failure.reason if failure else too_large.get(name),
            )
        )
    ready = [one for one in run.weight_sets if all(name in done or _is_known(run, name, cached) for name in one.rows)]
    kinds = parts(run)
    processes = sum(kinds.values()) - (0 if options.quick else len(ready))
    seconds = image_seconds + speed_seconds
    images_part = image_seconds / len(run.weight_sets)
    speed_part = speed_seconds / max(1, kinds["speed"] + kinds["images and speed"])
    each = {"images and memory": images_part, "images and speed": images_part + speed_part, "speed": speed_part}
    return Forecast(
        title=f"{options.model}, {', '.join(in_words(options))}",
        rows=tuple(lines),
        processes=processes,
        weights=weights.origins,
        seconds=seconds + _START_SECONDS * processes if seconds else None,
        bound=hardware is not None and hardware.bounds(options.dtype),
        part_seconds={kind: _START_SECONDS + part for kind, part in each.items()} if seconds else {},
        out=str(out),
    )


def _cached(run: Run, name: str, out: Path, weights: Ahead) -> tuple[str, ...]:
    """What need not be made again. Parts of trained weights are known by the hashes of these, once they are trained."""
    row, trained = run.rows[name].resolved, None
    if row.failure is not None:
        return ()
    if row.weight_set in weights.origins:
        if row.weight_set not in weights.hashes:
            return ()
        trained = Trained(log=None, files={}, hashes=weights.hashes[row.weight_set])
    kept = KeptParts(run=run, folder=out / PARTS)
    # Images that are to be kept are made again, whatever is known of them.
    wanted: dict[str, type] = {"quality": Seen} if run.is_scored(name) and run.options.keep_images is None else {}
    wanted |= {} if run.options.quick else {"memory": Looks}
    return tuple(
        what
        for what, kind in wanted.items()
        if kept.read(kind, name, trained=trained) or kept.of_machine(kind, name, trained=trained)
    )


def _is_known(run: Run, name: str, cached: dict[str, tuple[str, ...]]) -> bool:
    return "memory" in cached[name] and ("quality" in cached[name] or not run.is_scored(name))


def as_text(found: Forecast) -> str:
    from tabulate import tabulate

    lines: list[tuple[Any, ...]] = [
        (
            row.row,
            row.weights,
            "-" if row.share is None else f"{row.share:.0%}",
            "-" if row.call_seconds is None else formatting.seconds(row.call_seconds),
            row.trouble
            or ("there already" if row.done else f"{' and '.join(row.cached)} cached" if row.cached else ""),
        )
        for row in found.rows
    ]
    told = {"shipped": "weights that ship", "cache": "weights in the cache", None: "to be trained"}
    by_origin: dict[str | None, list[str]] = {}
    for recipe, origin in found.weights.items():
        by_origin.setdefault(origin, []).append(recipe)
    recipes = [f"{told[origin]}: {', '.join(of_it)}" for origin, of_it in by_origin.items()]
    trains = None in by_origin
    table = tabulate(lines, ("row", "weights", "work", "batch, predicted", ""), disable_numparse=True)
    how = "a bound by the roofline" if found.bound else "by what was measured of this machine"
    time = (
        "not predicted on this device"
        if found.seconds is None
        else f"about {formatting.seconds(found.seconds)}{' and the training' if trains else ''} ({how})"
    )
    return (
        f"{found.title}\n{table}\n\n{found.processes} processes; {'; '.join(recipes) or 'nothing is trained'}\n"
        f"time: {time}\nrecords would go to {found.out}; nothing was run"
    )
