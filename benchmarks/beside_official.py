"""Whole generations of our full model beside the official code's, by turns in one process and on the same random weights.

    python benchmarks/beside_official.py DIR --model var-d30 --batch 64,1

DIR is a checkout of github.com/FoundationVision/VAR, and what that needs (huggingface_hub) is installed; it is imported from
there, and nothing of it is in this repository. It runs as in its demo, under autocast in float16, on a CPU in bfloat16; ours
in bfloat16; with `--dtype float32` both in float32. Of the presets, var-d16 to var-d36 have its sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from varbench import Pipeline, load_pipeline
from varbench.measure.clock import clock_for

TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, metavar="DIR")
    parser.add_argument("--model", default="var-d30", metavar="PRESET")
    parser.add_argument("--batch", default="64,1", metavar="N,N", help="images a call")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype, random=True)
    of_ours = _allocated()
    theirs = official(args.official, pipe)
    of_theirs = _allocated() - of_ours
    filters: dict[str, Any] = {"cfg": 1.5, "top_k": min(900, pipe.model.tokenizer.vocabulary), "top_p": 0.96}
    kind = torch.float16 if pipe.device.type == "cuda" else torch.bfloat16
    lines = []
    for batch in map(int, args.batch.split(",")):
        numbers = [image % pipe.model.classes for image in range(batch)]
        labels = torch.tensor(numbers, device=pipe.device)

        @torch.inference_mode()
        def their_call(labels: torch.Tensor = labels) -> object:
            with torch.autocast(pipe.device.type, dtype=kind, enabled=args.dtype == "bfloat16"):
                return theirs.autoregressive_infer_cfg(B=len(labels), label_B=labels, g_seed=0, **filters)

        def our_call(numbers: list[int] = numbers) -> object:
            return pipe.generate(numbers, **filters)

        their_peak = peak(their_call, own=of_theirs)
        with pipe.alone("full_var"):
            our_peak = peak(our_call, own=of_ours)
        our_call(), our_call()  # captured, and as it is timed
        first, second = by_turns(their_call, our_call, pipe, tight=_tight(their_peak + 2 * our_peak))
        peaks = [f"{one / 2**30:.2f} GiB" if one else "" for one in (their_peak, our_peak)]
        lines.append([batch, f"{1e3 * first:.1f}", f"{1e3 * second:.1f}", f"{first / second:.2f}x", *peaks])
    print(
        f"{args.model} in {args.dtype} with sampler and decoder, random weights, {TURNS} turns; torch {torch.__version__}\n"
    )
    print(tabulate(lines, ["batch", "official, ms", "ours, ms", "", "official, peak", "ours"], disable_numparse=True))


def official(checkout: Path, pipe: Pipeline) -> Any:
    """Their model with our weights, which are there by now: once theirs is built, torch draws no initial values any more."""
    sys.path.insert(0, str(checkout))
    spec, codes = pipe.model, pipe.model.tokenizer
    built = import_module("models").build_vae_var(
        device=pipe.device, patch_nums=spec.sides, V=codes.vocabulary, Cvae=codes.code_dim, ch=codes.channels,
        share_quant_resi=codes.phis, num_classes=spec.classes, depth=spec.depth, shared_aln=spec.shared_adaln,
        attn_l2_norm=spec.l2_attention,
    )  # fmt: skip
    for module, ours in zip(built, (pipe.tokenizer, pipe.backbones["main"]), strict=True):
        found = module.eval().load_state_dict(ours.state_dict(), strict=False)
        lacking = dict(module.named_parameters()).keys() & {*found.missing_keys}
        assert not (lacking or found.unexpected_keys), (lacking, found.unexpected_keys)
    return built[1]


def by_turns(
    first: Callable[[], object], second: Callable[[], object], pipe: Pipeline, *, tight: bool
) -> tuple[float, float]:
    """Median seconds of each. Where memory is `tight`, neither keeps anything while the other runs."""
    clock = clock_for(pipe.device)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        if tight:
            with pipe.alone("full_var"):  # what was captured is forgotten
                torch.cuda.empty_cache()
        for call, seconds in zip((first, second), taken, strict=True):
            if tight and call is second:
                torch.cuda.empty_cache()
                call()  # captured anew
            start = clock.mark()
            call()
            end = clock.mark()
            clock.settle()
            seconds.append(clock.between(start, end))
    return statistics.median(taken[0]), statistics.median(taken[1])


def _tight(bytes_of_both: int) -> bool:
    """Captured, ours keeps up to twice its peak."""
    return torch.cuda.is_initialized() and bytes_of_both > 0.9 * torch.cuda.mem_get_info()[1]


def peak(call: Callable[[], object], *, own: int) -> int:
    """What the allocator holds for one of the two at most, of whose weights it held `own` before."""
    others = _allocated() - own
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - others if torch.cuda.is_initialized() else 0


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


if __name__ == "__main__":
    main()
