"""DiT as a generator: its images, its noise, its statement of work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from varbench.errors import CheckpointError, UserError
from varbench.plan import presets
from varbench.policies import Generator, Setting
from varbench_plugins import dit

TINY = presets.preset("tiny").spec
library = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="the extra varbench[dit] is not installed"
)


def made(point: str = "s2", **parameters: Any) -> Generator:
    defaults = {"size": "S", "cfg": 1.5, "weights": ""}
    return dit.varbench_generator(Setting(plugin="dit", point=point, parameters={**defaults, **parameters}), TINY)


@pytest.fixture(scope="module")
def loaded() -> Generator:
    generator = made()
    generator.load(device="cpu", dtype="float32", seed=0)
    return generator


@pytest.mark.slow
@library
def test_noise_is_an_images_own_and_global_state_stays(loaded: Generator) -> None:
    before = torch.random.get_rng_state()
    whole = loaded.generate([1, 2, 3], seed=5, first_image=0)
    assert whole.shape == (3, 3, 32, 32)
    assert 0 <= whole.min() < whole.max() <= 1
    assert (loaded.generate([2, 3], seed=5, first_image=1) - whole[1:]).abs().max() < 1e-4
    assert (loaded.generate([2, 3], seed=6, first_image=1) - whole[1:]).abs().max() > 0.1
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
@library
def test_parameters_are_those_of_the_paper(loaded: Generator) -> None:
    """The paper has 33 M for DiT-S; every block of the library's has a copy of the embedders, 6.9 M together."""
    parameters = loaded.work(1).parameters
    assert parameters is not None
    assert parameters / 1e6 == pytest.approx(33, abs=0.2)


@pytest.mark.slow
@library
@pytest.mark.parametrize("cfg", [1.5, 1.0])
def test_flops_are_those_that_torch_counts(loaded: Generator, cfg: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(loaded, "_cfg", cfg)
    pipe = loaded._pipe  # type: ignore[attr-defined]
    decode = pipe.vae.decode
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted = []

        def stop_counting(*arguments: Any, **keywords: Any) -> Any:
            counted.append(counter.get_total_flops())
            return decode(*arguments, **keywords)

        monkeypatch.setattr(pipe.vae, "decode", stop_counting)
        loaded.generate([1, 2], seed=0, first_image=0)
        whole = counter.get_total_flops()
    work = loaded.work(2)
    assert [*counted, whole] == [work.flops, work.flops + work.decoder_flops]  # type: ignore[operator]


@pytest.mark.slow
@library
def test_it_keeps_its_promises() -> None:
    from varbench.check import check

    assert check("dit@s3") == []


@pytest.mark.slow
@library
def test_weights_from_a_folder(loaded: Generator, tmp_path: Path) -> None:
    loaded._pipe.save_pretrained(tmp_path / "dit")  # type: ignore[attr-defined]
    twin = dit.DiT(side=32, size=dit.SIZES["S"], steps=2, cfg=1.5, weights=str(tmp_path / "dit"))
    twin.load(device="cpu", dtype="float32", seed=1)
    assert torch.equal(twin.generate([4], seed=0, first_image=0), loaded.generate([4], seed=0, first_image=0))
    other = dit.DiT(side=32, size=dit.SIZES["B"], steps=2, cfg=1.5, weights=str(tmp_path / "dit"))
    with pytest.raises(CheckpointError, match="12 layers of width 384 for 32 px, but the row is for 12 of width 768"):
        other.load(device="cpu", dtype="float32", seed=1)


def published_parameters(depth: int, width: int) -> int:
    """Patches, embedders of time and class, blocks, and the last layer, as the paper draws them."""
    embedders = 256 * width + width + width * width + width + 1001 * width
    block = (6 + 4 + 8) * width * width + (6 + 4 + 5) * width
    last = 2 * width * width + 2 * width + width * 32 + 32
    return 16 * width + width + embedders + depth * block + last


def test_published_parameters() -> None:
    assert round(published_parameters(28, 1152) / 1e6, 1) == 674.8


@pytest.mark.slow
@library
def test_embedders_that_the_library_copies_count_once(loaded: Generator) -> None:
    assert loaded.work(1).parameters == published_parameters(12, 384)


def test_the_row_that_others_print_has_fifty_steps() -> None:
    (line,) = dit.varbench_settings(presets.preset("var-d30").spec).published
    assert (line.setting, line.grade) == ("@s50", "primary")
    assert "50 steps of DDIM" in line.conditions


def test_work_of_the_published_size() -> None:
    """The paper has 118.6 G multiply-adds for a forward pass of DiT-XL/2 at 256 px."""
    generator = dit.DiT(side=256, size=dit.SIZES["XL"], steps=1, cfg=1.0, weights="")
    flops = generator.work(1).flops
    assert flops is not None
    assert flops / 2 == pytest.approx(118.6e9, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point": "s0"}, "s0 is out of range"),
        ({"size": "XXL"}, "size is 'XXL'"),
        ({"cfg": 0.5}, "cfg is 0.5"),
        ({"weights": "nowhere"}, "knows ImageNet's 1000 classes, and tiny has 10 others"),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**change)


def test_a_folder_without_a_model() -> None:
    setting = Setting(plugin="dit", point="s2", parameters={"size": "XL", "cfg": 1.5, "weights": "nowhere"})
    with pytest.raises(UserError, match=r"nowhere is no folder with a model_index\.json"):
        dit.varbench_generator(setting, presets.preset("var-d16").spec)
