"""What the engine's fast paths on a CPU gain over the plain way of doing the same, part by part and in whole generations.

    python benchmarks/fast_paths.py --preset var-d16 --batch 4 --dtype bfloat16

Fast and plain take turns in one process, and the table gives the median of the ratios of neighbouring turns: of processor
time, which a busy machine stretches little, and of the clock. Weights are random where none are shipped. What the loop does
in fewer passes has no plain form any more and is in both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varbench.engine.loop as engine
import varbench.model.transformer as transformer
from varbench import load_pipeline
from varbench.engine import sampler
from varbench.engine.pipeline import Pipeline
from varbench.model.weighted import product
from varbench.plan.presets import shipped_files

Part = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", default="full_var", help="by comma")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    pipe = load_pipeline(args.preset, dtype=args.dtype, random=not shipped_files(args.preset))
    print(
        f"{args.preset}, batch {args.batch}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| part | fast, ms of processor | plain | plain / fast | by the clock |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for name, (fast, plain) in pairs(pipe, args.batch, args.rows.split(",")).items():
            print(f"| {name} | {compared(fast, plain, turns=args.turns)} |", flush=True)


def pairs(pipe: Pipeline, batch: int, rows: list[str]) -> dict[str, tuple[Part, Part]]:
    model = pipe.model
    x = torch.randn(2 * batch, model.tokens[-1], model.width).to(pipe.dtype)
    fc1 = pipe.backbones["main"].block(0).ffn.fc1
    maps = torch.randn(batch, model.tokenizer.code_dim, model.sides[-1], model.sides[-1])
    logits = 2.5 * torch.randn(batch, model.tokens[-1], model.tokenizer.vocabulary)
    tokenizer = plain_tokenizer(pipe)
    k, p = (900, 0.96) if model.tokenizer.vocabulary >= 4096 else (0, 0.0)

    def plainly(call: Part) -> Part:
        def run() -> object:
            with everything_plain(pipe, tokenizer):
                return call()

        return run

    found: dict[str, tuple[Part, Part]] = {
        "FFN's first product and GELU, last scale": (
            lambda: product(x, fc1.weight, fc1.bias, gelu=True),
            lambda: plain_product(x, fc1.weight, fc1.bias, gelu=True),
        ),
        "decoder": (lambda: pipe.tokenizer.decode_map(maps), lambda: tokenizer.decode_map(maps)),
    }
    if k:
        found["filters, last scale"] = (
            lambda: sampler.filtered(logits, top_k=k, top_p=p),
            lambda: sampler._filtered_among_all(logits, top_k=k, top_p=p),
        )
    labels = [number % model.classes for number in range(batch)]
    seeds = iter(range(1_000_000))
    for row in rows:

        def whole(row: str = row) -> object:
            return pipe.generate(labels, seed=next(seeds), cfg=1.5, top_k=k, top_p=p, method=row)

        found[f"generation, {row}"] = whole, plainly(whole)
    return found


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    made = F.linear(x, weight, bias)
    return F.gelu(made, approximate="tanh") if gelu else made


def plain_tokenizer(pipe: Pipeline) -> Any:
    """Its decoder in float32, channels first."""
    tokenizer = copy.deepcopy(pipe.tokenizer)
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d):
            module.float()
            module.weight.data = module.weight.data.contiguous()
    return tokenizer


@contextmanager
def everything_plain(pipe: Pipeline, tokenizer: Any) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(transformer, "product", plain_product))
        stack.enter_context(patch.object(engine, "filtered", sampler._filtered_among_all))
        stack.enter_context(patch.object(pipe, "tokenizer", tokenizer))
        yield


def compared(fast: Part, plain: Part, *, turns: int) -> str:
    fast(), plain()
    taken = [(_seconds(fast), _seconds(plain)) for _ in range(turns)]
    processor = [(a[0], b[0]) for a, b in taken]
    ratio, by_clock = (statistics.median(b[which] / a[which] for a, b in taken) for which in (0, 1))
    fastest = [1000 * min(column) for column in zip(*processor, strict=True)]
    return f"{fastest[0]:.1f} | {fastest[1]:.1f} | {ratio:.2f} | {by_clock:.2f}"


def _seconds(part: Part) -> tuple[float, float]:
    began = time.process_time(), time.perf_counter()
    part()
    return time.process_time() - began[0], time.perf_counter() - began[1]


if __name__ == "__main__":
    main()
