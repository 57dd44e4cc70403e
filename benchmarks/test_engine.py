"""How long the engine's parts take, one by one: `pytest benchmarks -o addopts="" --benchmark-only --device cuda`.

Not part of the ordinary test run. `--preset var-d16` takes a model's true sizes with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from varbench.engine.loading import load_pipeline
from varbench.engine.pipeline import Pipeline
from varbench.engine.sampler import draw, filtered, streams, uniforms
from varbench.model.fused import normed
from varbench.plan.presets import shipped_files

Timed = Callable[[Callable[[], Any]], None]


@pytest.fixture(scope="session")
def pipe(request: pytest.FixtureRequest) -> Pipeline:
    option = request.config.getoption
    return load_pipeline(
        option("--preset"),
        device=option("--device"),
        dtype=option("--dtype"),
        random=not shipped_files(option("--preset")),
    )


@pytest.fixture(scope="session")
def batch(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--batch"))


@pytest.fixture
def timed(benchmark: Any, pipe: Pipeline) -> Timed:
    """Times a call to its true end, which on a GPU is after the launch."""

    def run(call: Callable[[], Any]) -> None:
        @torch.inference_mode()
        def whole() -> None:
            call()
            if pipe.device.type == "cuda":
                torch.cuda.synchronize(pipe.device)

        whole()
        benchmark(whole)

    return run


def scales() -> range:
    """Six of the model's scales, first and last included."""
    return range(6)


def _scale(pipe: Pipeline, scale: int) -> int:
    """The six are spread over however many scales the model has, the last included."""
    return round(scale * (pipe.model.scales - 1) / (len(scales()) - 1))


def _stream(pipe: Pipeline, rows: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, tokens, pipe.model.width, generator=generator).to(pipe.device)


@pytest.mark.parametrize("scale", scales())
def test_block(timed: Timed, pipe: Pipeline, batch: int, scale: int) -> None:
    """One layer without its cache: norm, projections, attention to itself, FFN."""
    transformer = pipe.backbones["main"]
    block = transformer.blocks[0]
    x_RLC = _stream(pipe, 2 * batch, pipe.model.tokens[_scale(pipe, scale)])
    with torch.inference_mode():
        cond = transformer.condition(torch.zeros(2 * batch, dtype=torch.long, device=pipe.device))
        six = block.modulation(cond, transformer.shared_modulation(cond, pipe.dtype), pipe.dtype)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six

    def call() -> torch.Tensor:
        q, k, v = block.attn.qkv(normed(x_RLC) * scale1 + shift1, pipe.dtype)
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v, scale=block.attn.softmax_scale)
        y = x_RLC + block.attn.out(mixed, pipe.dtype) * gamma1
        return y + block.ffn(normed(y) * scale2 + shift2, pipe.dtype) * gamma2

    timed(call)


@pytest.mark.parametrize("scale", scales())
def test_attention(timed: Timed, pipe: Pipeline, batch: int, scale: int) -> None:
    """Queries of one scale to the keys of all scales so far."""
    model, place = pipe.model, _scale(pipe, scale)
    generator = torch.Generator().manual_seed(0)

    def tensor(tokens: int) -> torch.Tensor:
        shape = (2 * batch, model.heads, tokens, model.head_dim)
        return torch.randn(shape, generator=generator).to(pipe.device, pipe.dtype)

    queries, keys, values = (
        tensor(model.tokens[place]),
        tensor(model.starts[place + 1]),
        tensor(model.starts[place + 1]),
    )
    timed(lambda: F.scaled_dot_product_attention(queries, keys, values))


@pytest.mark.parametrize("top_k", [0, 900])
@pytest.mark.parametrize("top_p", [0.0, 0.96])
def test_sampler(timed: Timed, pipe: Pipeline, batch: int, top_k: int, top_p: float) -> None:
    """Filters, noise and the draw, at the last scale."""
    model, last = pipe.model, pipe.model.scales - 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, model.tokens[last], model.tokenizer.vocabulary, generator=generator).to(pipe.device)
    images = torch.arange(batch, device=pipe.device)

    def call() -> torch.Tensor:
        noise = uniforms(streams(images, seed=0), scale=last, count=model.tokens[last])
        return draw(filtered(logits, top_k=top_k, top_p=top_p), noise)

    timed(call)


@pytest.mark.parametrize("scale", scales())
def test_quantiser_step(timed: Timed, pipe: Pipeline, batch: int, scale: int) -> None:
    """Codes of one scale into the running map, and the map shrunk for the next."""
    place, quantizer = _scale(pipe, scale), pipe.tokenizer.quantize
    tokens = torch.zeros(batch, pipe.model.tokens[place], dtype=torch.long, device=pipe.device)

    def call() -> torch.Tensor:
        f_hat = quantizer.contribution(tokens, place)
        return quantizer.features(f_hat, min(place + 1, pipe.model.scales - 1))

    timed(call)


def test_decoder(timed: Timed, pipe: Pipeline, batch: int) -> None:
    tokens = torch.zeros(batch, pipe.model.length, dtype=torch.long, device=pipe.device)
    timed(lambda: pipe.decode(tokens))
