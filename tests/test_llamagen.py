"""LlamaGen: agreement with the authors' code on small random weights, its noise, its statement of work, its training."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import golden_files as golden
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.engine.subjects import GeneratorSubject, load_generator
from varbench.errors import CheckpointError, UserError
from varbench.plan import presets
from varbench_plugins.llamagen import generator as generators
from varbench_plugins.llamagen import pixels as pixels_module
from varbench_plugins.llamagen.generator import CodeByCode, Official
from varbench_plugins.llamagen.network import Network, Reading
from varbench_plugins.llamagen.own_codes import k_means
from varbench_plugins.llamagen.pixels import Pixels
from varbench_plugins.llamagen.sampling import Sampler, noise_of
from varbench_plugins.llamagen.sizes import Size

TINY, D30 = presets.preset("tiny").spec, presets.preset("var-d30").spec
CONFIG, THEIRS = golden.read("llamagen")
SMALL = partial(Pixels, **CONFIG["pixels"])


def rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that a full tensor name stands for."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + 0.1 * n)
    if len(shape) == 1:
        return torch.from_numpy(0.1 * n)
    if "embed" in name:
        return torch.from_numpy(n if name == "quantize.embedding.weight" else 0.5 * n)
    return torch.from_numpy(n / np.float32(np.prod(shape[1:]) ** 0.5))


def ruled(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {name: rule(f"{prefix}.{name}", tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


def network_of(case: str) -> Network:
    network = Network.empty(Size(**CONFIG[case]), device=torch.device("cpu"), dtype=torch.float32)
    network.load_state_dict(ruled(network, "gpt"))
    return network.requires_grad_(False)


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("case", ["even", "odd"])
def test_teacher_forced_logits(case: str) -> None:
    """`odd` has heads of 100 numbers, as the largest published size."""
    codes = THEIRS[f"{case}.codes"][:, :-1]
    assert worst(network_of(case)(THEIRS[f"{case}.labels"], codes), THEIRS[f"{case}.forced"]) < 1e-5


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", ["even", "odd"])
def test_decoding_by_the_cache(case: str, whole: bool) -> None:
    """Reading what is filled, or the whole cache behind a mask."""
    network, codes_BN = network_of(case), THEIRS[f"{case}.codes"]
    caches = network.caches(len(codes_BN))
    logits = [network.first(THEIRS[f"{case}.labels"], caches)]
    places = torch.arange(network.size.capacity)
    for position in range(1, network.size.steps):
        mask = (places <= position)[None, None, None]
        reading = Reading(torch.tensor([position]), len(places) if whole else position + 1, mask if whole else None)
        logits.append(network.step(codes_BN[:, position - 1], caches, reading))
    assert worst(torch.stack(logits, dim=1), THEIRS[f"{case}.cached"]) < 1e-5


class Codes(CodeByCode):
    decoder_macs = 0

    def pixels_of(self, codes_BN: Tensor) -> Tensor:
        return codes_BN.float()

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("case", "interval"), [("even", -1), ("even", 5), ("odd", -1), ("odd", 5)])
def test_guided_greedy_codes(case: str, interval: int, graph: bool) -> None:
    network = network_of(case)
    codes = Codes(size=network.size, sampler=Sampler(cfg=2.0, cfg_interval=interval, top_k=1), graph=graph)
    codes.ready(network)
    labels = THEIRS[f"{case}.labels"][:2].tolist()
    assert torch.equal(codes.codes_of(labels, seed=0, first_image=0), THEIRS[f"{case}.greedy_{interval}"])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.0, 0, 0.8), (1.3, 50, 0.9)]
)
def test_filters(temperature: float, top_k: int, top_p: float) -> None:
    sampler = Sampler(cfg=1.0, temperature=temperature, top_k=top_k, top_p=top_p)
    ours = sampler.probabilities(THEIRS["filter.logits"])
    assert worst(ours, THEIRS[f"filter.t{temperature}_k{top_k}_p{top_p}"]) < 1e-6


def test_pixels_and_their_reduction() -> None:
    pixels = SMALL().requires_grad_(False)
    pixels.load_state_dict(ruled(pixels, "vq"))
    for side, name in ((24, "whole"), (16, "smaller")):
        theirs = THEIRS[f"pixels.{name}"].add(1).div(2).clamp(0, 1)
        assert worst(pixels(THEIRS["pixels.codes"], side=side), theirs) < 2e-5


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.0, 2.0, -torch.inf, 1.0])
    noise = noise_of(range(40), seed=3, positions=500).flatten()
    drawn = Sampler(cfg=1.0).draw(logits.expand(len(noise), -1), noise)
    counts, expected = torch.bincount(drawn, minlength=4), logits.softmax(0) * len(noise)
    assert counts[2] == 0
    chi_square = ((counts - expected).square() / expected)[expected > 0].sum()
    assert chi_square < 13.8, "0.1 % of honest draws are further off"


def test_noise_is_an_images_own() -> None:
    whole = noise_of(range(5, 9), seed=1, positions=7)
    assert torch.equal(noise_of(range(6, 8), seed=1, positions=7), whole[1:3])
    assert len(noise_of(range(5, 9), seed=2, positions=7).unique()) == 28
    assert not torch.equal(noise_of(range(5, 9), seed=2, positions=7), whole)


@pytest.mark.parametrize(
    ("point", "millions", "macs", "mebibytes"),
    [
        ("B256", 110.9, 25.6, 9.0), ("B384", 111.2, 59.2, 20.3), ("L384", 343, 195.4, 54.0), ("XL384", 775, 448.7, 101.3),
        ("XXL384", 1411, 821.8, 162.0), ("3B384", 3097, 1777, 168.8),
    ],
)  # fmt: skip
def test_work_of_the_published_sizes(point: str, millions: float, macs: float, mebibytes: float) -> None:
    """Parameters as published; the cache is theirs of 257 or 577 positions, of which upstream rounds up too."""
    generator = rows.resolve(f"llamagen@{point}", D30).policies.generator
    assert generator is not None
    own = generator.policy
    assert isinstance(own, Official)
    own._item = 2
    work = own.work(3)
    assert work.parameters is not None and work.flops is not None and work.cache_peak_bytes is not None
    assert work.parameters / 1e6 == pytest.approx(millions, rel=0.003)
    assert work.flops == pytest.approx(3 * 2 * 2 * macs * 1e9, rel=0.003)
    assert work.cache_peak_bytes / 2**20 == pytest.approx(3 * 2 * mebibytes, rel=0.035)
    assert work.steps == (256 if point.endswith("256") else 576)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Official:
    """In the official shape, but small."""
    monkeypatch.setattr(pixels_module, "Pixels", SMALL)
    for name, value in {"CHANNELS": (32, 32, 64), "CODE_DIM": 8, "LATENT": 16}.items():
        monkeypatch.setattr(generators.sizes, name, value)
    return Official(size=Size(**CONFIG["even"]), sampler=Sampler(cfg=2.0), graph=False, side=16)


@pytest.mark.parametrize(("graph", "cfg"), [(False, 2.0), (True, 2.0), (False, 1.0)])
def test_flops_are_those_that_torch_counts(small: Official, graph: bool, cfg: float) -> None:
    small.graph, small.sampler = graph, Sampler(cfg=cfg)
    small.load(device="cpu", dtype="float32", seed=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images = small.generate([1, 2], seed=0, first_image=0)
    work = small.work(2)
    assert counter.get_total_flops() == work.flops + work.decoder_flops  # type: ignore[operator]
    assert images.shape == (2, 3, 16, 16) and 0 <= images.min() < images.max() <= 1


def test_an_image_depends_on_its_number_alone(small: Official) -> None:
    before = torch.random.get_rng_state()
    small.load(device="cpu", dtype="float32", seed=0)
    whole = small.codes_of([1, 2, 3], seed=5, first_image=0)
    assert torch.equal(small.codes_of([2, 3], seed=5, first_image=1), whole[1:])
    assert not torch.equal(small.codes_of([2, 3], seed=6, first_image=1), whole[1:])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("nest", ["model", "module", "state_dict", None])
def test_official_files(small: Official, nest: str | None, tmp_path: Path) -> None:
    small.load(device="cpu", dtype="float32", seed=0)
    assert small.network is not None and small._pixels is not None
    network = {**small.network.state_dict(), "freqs_cis": torch.zeros(3)}
    unused = {"encoder.conv_in.weight": torch.zeros(1), "quant_conv.bias": torch.zeros(1)}
    torch.save(network if nest is None else {nest: network, "steps": 3}, tmp_path / "c2i.pt")
    torch.save(
        {"model": {**small._pixels.state_dict(), **unused, "quantize.codebook_used": torch.zeros(9)}},
        tmp_path / "vq.pt",
    )
    files = {"weights": str(tmp_path / "c2i.pt"), "tokenizer": str(tmp_path / "vq.pt")}
    twin = Official(size=small.size, sampler=small.sampler, graph=False, side=16, **files)
    assert twin.trained and not small.trained
    twin.load(device="cpu", dtype="float32", seed=9)
    assert torch.equal(twin.generate([4], seed=0, first_image=0), small.generate([4], seed=0, first_image=0))
    wider = Official(size=replace(small.size, width=128), sampler=small.sampler, graph=False, side=16, **files)
    with pytest.raises(CheckpointError, match=r"does not fit the row: \d+ tensors differ, as "):
        wider.load(device="cpu", dtype="float32", seed=9)
    (tmp_path / "c2i.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        twin.load(device="cpu", dtype="float32", seed=9)


def test_published_figures_stand_beside_every_point() -> None:
    found = {row.name: row.published for row in rows.expand("llamagen", D30, all_settings=True)}
    assert len(found) == 7
    assert {line.figures["fid"] for lines in found.values() for line in lines if "fid" in line.figures} == {
        5.46, 3.80, 6.09, 3.07, 2.62, 2.34, 2.18,
    }  # fmt: skip
    assert all("cfg" in line.conditions or "576 steps" in line.conditions for lines in found.values() for line in lines)
    assert not rows.resolve("llamagen", TINY).published


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("llamagen@L384:temperature=0", "temperature 0"),
        ("llamagen@L384:top_p=1.5", "top_p 1.5"),
        ("llamagen@L384:weights=a.pt", "give both weights= and tokenizer="),
        ("llamagen@L384:weights=a.pt:tokenizer=b.pt", "there is no file"),
        ("llamagen@M384", "M384"),
    ],
)
def test_wrong_settings(row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve(row, D30)


def test_k_means_finds_clusters() -> None:
    stream = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = centres.repeat_interleave(50, dim=0) + 0.1 * torch.randn(150, 2, generator=stream)
    found = k_means(points, 8, stream)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.3


@pytest.fixture(scope="module")
def nano() -> GeneratorSubject:
    owned = rows.resolve("llamagen", TINY).policies.generator
    assert owned is not None
    return load_generator(owned.policy, model=TINY, device=torch.device("cpu"), dtype="float32", seed=0)


def test_the_small_one_decodes_by_the_presets_tokenizer(nano: GeneratorSubject) -> None:
    images = nano.generator.generate([1, 2], seed=0, first_image=0)
    assert images.shape == (2, 3, 32, 32) and 0 <= images.min() < images.max() <= 1
    count = nano.generator.work(2).parameters
    assert count is not None and 4 * count < nano.loaded_bytes, "the tokenizer is loaded too, and is not the network's"


@pytest.mark.slow
def test_it_keeps_its_promises() -> None:
    from varbench.check import check

    assert check("llamagen") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_step_gives_the_same_codes() -> None:
    network = network_of("even").to("cuda").place_()
    made: list[Any] = []
    for graph in (False, True):
        codes = Codes(size=network.size, sampler=Sampler(cfg=2.0), graph=graph)
        codes.ready(network)
        made += [codes.codes_of([1, 2], seed=seed, first_image=0) for seed in (0, 1)]
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
