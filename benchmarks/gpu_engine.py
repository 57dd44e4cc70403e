"""The engine on a GPU: the full model and a method's points beside it, launched as graphs and operator by operator, decoder,
sampler and peak memory, against what the card's matrix units and memory give in the same process.

    python benchmarks/gpu_engine.py --model var-d30 --batch 64,1 --rows variant@d16,variant@d8,variant@d2 --out figures.json

Weights are random. Takes a minute; on a CPU it runs with `--model tiny --batch 2`, to see that it does. `gpu_round.py` is the
round that it belongs to.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from varbench import Pipeline, load_pipeline
from varbench.engine.sampler import draw, drawn, filtered, streams, uniforms
from varbench.measure.clock import Clock, clock_for
from varbench.measure.environment import cores
from varbench.model.weighted import product
from varbench.plan import cost
from varbench.plan.hardware import hardware
from varbench.rows import expand
from varbench.run.prepare import hardware_like

TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-d30", metavar="PRESET")
    parser.add_argument("--batch", default="64,1", metavar="N,N", help="images a call")
    parser.add_argument("--rows", default="variant", metavar="ROWS", help="default: VARiant's usual points")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--hardware", metavar="NAME", help="what predictions are for; default: the device, where it is known"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype, random=True)
    clock = clock_for(pipe.device)
    found: dict[str, Any] = {
        "device": _name(pipe),
        "torch": torch.__version__,
        "model": args.model,
        "dtype": args.dtype,
    }
    found |= _ceilings(pipe, clock)
    rows = ["full_var", *(row.name for row in expand(args.rows, pipe.model))]
    found["rows"] = [one for batch in map(int, args.batch.split(",")) for one in _rows(pipe, clock, rows, batch, args)]
    found["parts"] = _parts(pipe, clock, batch=int(args.batch.split(",")[0]))
    _print(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def _name(pipe: Pipeline) -> str:
    return torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else "cpu"


def _seconds(call: Callable[[], object], clock: Clock, *, turns: int = TURNS) -> float:
    call()
    found = []
    for _ in range(turns):
        start = clock.mark()
        call()
        end = clock.mark()
        clock.settle()
        found.append(clock.between(start, end))
    return statistics.median(found)


def _ceilings(pipe: Pipeline, clock: Clock) -> dict[str, float]:
    large = torch.empty(2**30 if pipe.device.type == "cuda" else 2**26, dtype=torch.uint8, device=pipe.device)
    copy = _seconds(large.clone, clock)
    return {"matrix_tflops": _matrix_rate(pipe, clock) / 1e12, "copy_gbs": 2 * large.numel() / copy / 1e9}


@torch.inference_mode()
def _matrix_rate(pipe: Pipeline, clock: Clock) -> float:
    """Of a large product; on a CPU of one of d16's."""
    rows, inner, outer = (8192, 8192, 8192) if pipe.device.type == "cuda" else (2048, 4096, 1024)
    x, weight = (torch.randn(side, inner, device=pipe.device, dtype=pipe.dtype) for side in (rows, outer))
    return 2 * rows * inner * outer / _seconds(lambda: product(x, weight, None), clock)


def _call(pipe: Pipeline, clock: Clock, row: str, batch: int) -> tuple[float, float, float]:
    """Seconds of the transformer, of the loop and of all."""
    marks: dict[str, list[Any]] = {"start": [], "logits": [], "end": []}
    start = clock.mark()
    labels = [image % pipe.model.classes for image in range(batch)]
    pipe.generate(labels, method=row, observer=lambda moment, step: marks[moment].append(clock.mark()))
    end = clock.mark()
    clock.settle()
    network = sum(clock.between(*span) for span in zip(marks["start"], marks["logits"], strict=True))
    return network, clock.between(marks["start"][0], marks["end"][-1]), clock.between(start, end)


def _rows(pipe: Pipeline, clock: Clock, rows: list[str], batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows take turns, each both ways; on a CPU, whose clock is its neighbours' too, each beside the rate of products then."""
    ways = [(row, graphs) for row in rows for graphs in ((False, True) if pipe.device.type == "cuda" else (False,))]
    taken: dict[tuple[str, bool], list[tuple[float, float, float]]] = {way: [] for way in ways}
    rates: dict[tuple[str, bool], list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):
        for row, graphs in ways:
            pipe.graphs = graphs
            times = _call(pipe, clock, row, batch)
            if turn:
                taken[row, graphs].append(times)
                if pipe.device.type == "cpu":
                    rates[row, graphs].append(_matrix_rate(pipe, clock))
    known = hardware(args.hardware) if args.hardware else hardware_like(_name(pipe), cores())
    found = []
    for row, graphs in ways:
        network, loop, whole = (statistics.median(part) for part in zip(*taken[row, graphs], strict=True))
        plan = pipe.compile(row)[0]
        work = cost.work(plan, batch=batch, dtype=args.dtype, device=pipe.device.type)
        beside = zip(taken[row, graphs], rates[row, graphs], strict=False)
        shares = [work.transformer_flops / times[0] / rate for times, rate in beside]
        found.append(
            {
                "row": row, "batch": batch, "graphs": graphs, "transformer": network, "loop": loop, "all": whole,
                "tflops": work.transformer_flops / network / 1e12, "share": statistics.median(shares) if shares else None,
                "predicted": None if known is None else cost.predict(work, known).transformer,
                "peak_bytes": None if graphs else _peak(pipe, row, batch),
            }
        )  # fmt: skip
    return found


def _peak(pipe: Pipeline, row: str, batch: int) -> int | None:
    if pipe.device.type != "cuda":
        return None
    with pipe.alone(row):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        pipe.generate([image % pipe.model.classes for image in range(batch)], method=row)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


@torch.inference_mode()
def _parts(pipe: Pipeline, clock: Clock, *, batch: int) -> dict[str, float]:
    model = pipe.model
    f_hat = torch.randn(batch, model.tokenizer.code_dim, model.sides[-1], model.sides[-1], device=pipe.device)
    logits = 2.5 * torch.randn(batch, model.tokens[-1], model.tokenizer.vocabulary, device=pipe.device)
    noise = uniforms(
        streams(torch.arange(batch, device=pipe.device), seed=0), scale=model.scales - 1, count=model.tokens[-1]
    )
    top_k = model.tokenizer.vocabulary * 900 // 4096
    return {
        "decoder": _seconds(lambda: pipe._decode_map(f_hat), clock),
        "sampler, last scale": _seconds(lambda: drawn(logits, noise, top_k=top_k, top_p=0.96), clock),
        "the same by sorting": _seconds(lambda: draw(filtered(logits, top_k=top_k, top_p=0.96), noise), clock),
    }


def _print(found: dict[str, Any]) -> None:
    print(f"{found['device']}, torch {found['torch']}: {found['model']}, {found['dtype']}, random weights")
    print(f"a matrix product reaches {found['matrix_tflops']:.3g} TFLOP/s, a copy {found['copy_gbs']:,.0f} GB/s\n")
    print(
        f"{'row':<28}{'batch':>6}  {'launched':<10}{'transformer':>12}{'loop':>11}{'all':>11}{'rate':>7}{'speedup':>9}{'predicted':>11}{'peak':>11}"
    )
    for one in found["rows"]:
        full = next(
            other
            for other in found["rows"]
            if (other["row"], other["batch"], other["graphs"]) == ("full_var", one["batch"], one["graphs"])
        )
        peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**30:.2f} GiB"
        foreseen = "" if one["predicted"] is None else f"{full['predicted'] / one['predicted']:.2f}x"
        print(
            f"{one['row']:<28}{one['batch']:>6}  {'graphs' if one['graphs'] else 'operators':<10}{one['transformer'] * 1e3:>9.2f} ms"
            f"{one['loop'] * 1e3:>8.2f} ms{one['all'] * 1e3:>8.2f} ms{one['share'] or one['tflops'] / found['matrix_tflops']:>7.0%}"
            f"{full['transformer'] / one['transformer']:>8.2f}x{foreseen:>11}{peak:>11}"
        )
    for name, seconds in found["parts"].items():
        print(f"{name}: {seconds * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
