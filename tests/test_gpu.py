"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

import models
import pytest
import torch

from varbench import load_pipeline
from varbench.engine.pipeline import Pipeline
from varbench.plan import cost

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def on_gpu(dtype: str) -> Pipeline:
    cpu = models.pipeline()
    return Pipeline(tokenizer=cpu.tokenizer, backbones=cpu.backbones, device="cuda", dtype=dtype, weights=cpu.weights)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.05), ("float16", 0.01)])
def test_logits_agree_with_the_cpu(dtype: str, bound: float) -> None:
    cpu = models.pipeline()
    tokens = cpu.generate(models.LABELS, seed=1).tokens
    exact = cpu.generate(models.LABELS, tokens=tokens, return_logits=True).logits
    ours = on_gpu(dtype).generate(models.LABELS, tokens=tokens, return_logits=True).logits
    assert exact is not None
    assert ours is not None
    assert (ours.cpu() - exact).abs().mean() / exact.std() < bound


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lossless_accounting_is_lossless(dtype: str) -> None:
    """Keys cast before they are stored, and the last scale left out: the same images as the official way, bit for bit."""
    pipe = on_gpu(dtype)
    lossless = pipe.generate(models.LABELS, seed=1, top_p=0.95, return_logits=True)
    upstream = pipe.generate(
        models.LABELS, seed=1, top_p=0.95, return_logits=True, method="full_var:accounting=upstream"
    )
    assert torch.equal(lossless.tokens, upstream.tokens)
    assert torch.equal(lossless.logits, upstream.logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["full_var", "variant@d2", "full_var:accounting=upstream"])
def test_the_allocator_sees_the_planned_state(method: str) -> None:
    """What the allocator holds at the end of each step grows and falls by the plan's bytes, to its block size."""
    pipe = load_pipeline("var-d16", device="cuda", dtype="bfloat16", random=True)
    held: list[int] = []

    def look(when: str, step: int) -> None:
        if when == "end":
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_allocated())

    out = pipe.generate([0] * 8, method=method, observer=look)
    planned = [step.state_after for step in cost.work(out.plan, batch=8, dtype="bfloat16").steps]
    assert tuple(planned) == out.trace.state_after
    for before, after, was, now in zip(held, held[1:], planned, planned[1:], strict=False):
        assert abs((after - before) - (now - was)) < 4 * 2**20
