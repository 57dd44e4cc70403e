"""Methods of others, each against the authors' choices or a naive implementation of its rule, alone and joined."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_files as golden
import models
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from varbench import calibration, cost, presets, rows
from varbench.compiler import Owned, RowPolicies, compile_plan
from varbench.engine.generate import Sampling, generate
from varbench.errors import PlanError, UserError
from varbench.pipeline import Pipeline
from varbench.plan import Plan
from varbench.policies import CacheStrategy
from varbench_plugins.fastvar.policies import computed_tokens
from varbench_plugins.fastvar.selection import farthest_from_mean, restored
from varbench_plugins.scale_window.similarity import likeness
from varbench_plugins.scalekv.selection import best_entries, observers
from varbench_plugins.scalekv.selectivity import own_share

TEN = presets.preset("var-d16").spec
TRAINING_FREE = ["fastvar", "scale_window", "scalekv", "prefix_exit"]
JOINED = ["variant@d3+scale_window@w1", "variant@d3+fastvar@r60", "variant@d3+scalekv@b50", "fastvar@r60+scale_window@w1",
          "fastvar@r60+scalekv@b50", "fastvar@skip1+scale_window@w1", "prefix_exit@e3+scale_window@w1+fastvar@r75skip1"]  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def golden_cases(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(golden.FOLDER / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"]), {key: file.get_tensor(key) for key in file.keys()}


def normal(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32"))


def test_fastvar_chooses_and_restores_as_the_authors_do() -> None:
    cases, theirs = golden_cases("fastvar_select")
    for name, case in cases.items():
        batch, side, channels, tag = case["batch"], case["side"], case["channels"], case["tag"]
        x, y = (normal(tag + letter, batch, side**2, channels) for letter in "xy")
        remembered = normal(tag + "cache", batch, case["cached_side"] ** 2, channels)
        count = computed_tokens(side**2, round(case["ratio"] * 100))
        places = farthest_from_mean(x, count)
        assert torch.equal(places, theirs[f"{name}.selected"].long().sort(dim=1).values), name
        chosen = y.gather(1, places.unsqueeze(-1).expand(-1, -1, channels))
        assert (restored(chosen, places, remembered, side=side) - theirs[f"{name}.restored"]).abs().max() < 1e-6, name


def test_scalekv_keeps_the_authors_entries() -> None:
    """Each golden case, replayed scale by scale: what the cache held before is what was kept so far."""
    cases, theirs = golden_cases("scalekv_select")
    compared = 0
    for name, case in cases.items():
        shape, size = (case["batch"], case["heads"]), case["head_dim"]
        grid = math.isqrt(case["observation_queries"])
        held, keys = torch.zeros(*shape, 0, dtype=torch.long), torch.zeros(*shape, 0, size)
        start = 0
        for scale, side in enumerate(case["sides"]):
            tag, count = case["tags"][str(scale)], side**2
            held = torch.cat((held, torch.arange(start, start + count).expand(*shape, -1)), dim=-1)
            keys = torch.cat((keys, normal(tag + "k", *shape, count, size)), dim=2)
            start += count
            assert held.shape[-1] == case["length_before"][scale]
            if f"{name}.kept_{scale}" in theirs:
                places = best_entries(
                    keys, normal(tag + "q", *shape, count, size), case["capacity_after_scale"][scale],
                    observers_m=observers(count, side=side, grid=grid), pool=case["pool_kernel"],
                )  # fmt: skip
                held = held.gather(2, places)
                keys = keys.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, size))
                assert torch.equal(held, theirs[f"{name}.kept_{scale}"].long()), (name, scale)
                compared += 1
    assert compared == sum(".kept_" in key for key in theirs)
    for key, window in theirs.items():
        if key.startswith("window_side"):
            side = int(key.removeprefix("window_side"))
            assert observers(side**2, side=side, grid=4).tolist() == sorted(window.tolist())
