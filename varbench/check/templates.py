"""The files that `varbench new-plugin` writes. `$name` is the plugin's name, `$version` varbench's version."""

from __future__ import annotations

from string import Template

PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "A method for varbench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["varbench>=$version"]

[project.optional-dependencies]
test = ["pytest>=8"]

# The name is what a row says, the value the module with the hooks.
[project.entry-points.varbench]
$name = "$name"

[tool.setuptools]
py-modules = ["$name"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
""")

README = Template("""\
# $name

A method for varbench: $summary.

    pip install -e .
    pytest                          # every promise that a method must keep, as a test of its own
    varbench check $name
    $next

The method is `$name.py`, one file. What each hook gives is said in `varbench.hookspecs`, what a policy may answer in
`varbench.policies`.
""")

TEST = Template('''\
"""The promises that every method must keep, and what this one is about."""

import $name
import pytest
from varbench.policies import Setting
from varbench.check.small_model import SPEC


@pytest.mark.varbench($name)
def test_promises(varbench_promise):
    varbench_promise()


$own
''')

DEPTH = (
    "runs fewer layers at the finer scales",
    '''\
"""Runs every second or fourth layer at the finer scales. Replace this rule by yours."""

from varbench import hookimpl
from varbench.policies import DepthPolicy, Parameter, Provenance, Settings

STRIDES = {"full": 1, "half": 2, "quarter": 4}


class EveryNth(DepthPolicy):
    def __init__(self, depth, *, stride, whole):
        self.depth, self.stride, self.whole = depth, stride, whole

    def layers(self, scale, backbone):
        return range(self.depth) if scale < self.whole else range(0, self.depth, self.stride)


@hookimpl
def varbench_settings(model):
    return Settings(
        points=tuple(STRIDES),
        parameters={"whole": Parameter(default=model.scales // 2, help="the first N scales run all layers")},
        neutral=("@full", f"@quarter:whole={model.scales}"),
        summary="every second or fourth layer at the finer scales",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_depth_policy(setting, model):
    return EveryNth(model.depth, stride=STRIDES[setting.point], whole=setting.parameters["whole"])
''',
    """\
def test_half_runs_every_second_layer():
    setting = Setting(plugin="$name", point="half", parameters={"whole": 1})
    policy = $name.varbench_depth_policy(setting, SPEC)
    assert list(policy.layers(0, "main")) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(policy.layers(5, "main")) == [0, 2, 4, 6]
""",
)

CACHE = (
    "keeps the first scale and a window of recent ones in the cache",
    '''\
"""Keeps keys and values of the first scale and of the latest ones. Replace this rule by yours."""

from varbench import hookimpl
from varbench.policies import CacheStrategy, Provenance, Settings


class Latest(CacheStrategy):
    def __init__(self, window):
        self.window = window

    def keeps(self, layer, written, reader, group):
        return written == 0 or reader - written <= self.window


@hookimpl
def varbench_settings(model):
    return Settings(
        points=tuple(f"w{window}" for window in range(3, 0, -1)),
        point_pattern="w[0-9]+",
        neutral=(f"@w{model.scales}",),
        summary="keeps the first scale and the latest ones",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_cache_strategy(setting, model):
    return Latest(int(setting.point[1:]))
''',
    """\
def test_only_the_first_scale_and_the_latest_are_kept():
    strategy = $name.varbench_cache_strategy(Setting(plugin="$name", point="w2"), SPEC)
    assert [strategy.keeps(0, written, 5, 0) for written in range(5)] == [True, False, False, True, True]
""",
)

TOKENS = (
    "computes a share of the last scale's tokens in the FFN",
    '''\
"""At the last scale the FFN computes the tokens farthest from the mean; the others get none. Replace this rule by yours."""

from varbench import hookimpl
from varbench.policies import Provenance, Settings, TokenPolicy


class Farthest(TokenPolicy):
    def __init__(self, model, percent):
        self.model, self.percent = model, percent

    def tokens(self, layer, scale, sublayer):
        if sublayer == "attention" or scale < self.model.scales - 1:
            return None
        return max(1, self.model.tokens[scale] * self.percent // 100)

    def pick(self, x_BLC, count, *, layer, scale, sublayer):
        distance_BL = (x_BLC - x_BLC.mean(dim=1, keepdim=True)).square().sum(dim=-1)
        return distance_BL.topk(count, dim=1).indices.sort(dim=1).values

    def fill(self, computed_BnC, places_Bn, remembered_BlC, *, length, scale):
        filled = computed_BnC.new_zeros(computed_BnC.shape[0], length, computed_BnC.shape[2])
        return filled.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("r75", "r50", "r25"),
        point_pattern="r[1-9][0-9]?|r100",
        neutral=("@r100",),
        summary="the last scale's FFN on a share of the tokens",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_token_policy(setting, model):
    return Farthest(model, int(setting.point[1:]))
''',
    """\
def test_the_token_that_stands_out_is_picked():
    import torch

    policy = $name.varbench_token_policy(Setting(plugin="$name", point="r25"), SPEC)
    x_BLC = torch.zeros(1, 4, 8)
    x_BLC[0, 2] = 1
    assert policy.pick(x_BLC, 1, layer=0, scale=5, sublayer="ffn").tolist() == [[2]]
""",
)

TRAINING = (
    "trains the full model and its first half in turn",
    '''\
"""One network for two depths, trained by turns: a step of the full model, a step of half of it. Replace this by yours."""

from varbench import hookimpl
from varbench.policies import DepthPolicy, Provenance, Settings, TrainingSchedule, TrainStep


class FirstLayers(DepthPolicy):
    def __init__(self, model, count):
        self.model, self.count = model, count

    def layers(self, scale, backbone):
        return range(self.model.depth if scale < self.model.scales // 2 else self.count)


class ByTurns(TrainingSchedule):
    def at(self, stage, step, total, uniform):
        return TrainStep(point="half") if step % 2 else TrainStep()


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("full", "half"),
        recipes=("by_turns", "untrained"),
        neutral=("@untrained/full",),
        summary="the full model and its first half, trained by turns",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_depth_policy(setting, model):
    return FirstLayers(model, model.depth if setting.point == "full" else model.depth // 2)


@hookimpl
def varbench_training_schedule(setting, model):
    return ByTurns() if setting.recipe == "by_turns" else None
''',
    """\
def test_every_second_step_trains_half():
    setting = Setting(plugin="$name", recipe="by_turns", point="full")
    schedule = $name.varbench_training_schedule(setting, SPEC)
    (stage,) = schedule.stages()
    assert [schedule.at(stage, step, 4, None).point for step in range(4)] == [None, "half", None, "half"]
""",
)

GENERATOR = (
    "a model of another family in place of the whole loop",
    '''\
"""A generator of another family: noise, refined by a matrix a few times. Replace it by your model."""

from varbench import hookimpl
from varbench.policies import Generator, Provenance, Settings, Work


class Refiner(Generator):
    def __init__(self, model, steps):
        self.side, self.classes, self.steps = model.image_side, model.classes, steps

    def load(self, *, device, dtype, seed):
        import torch

        stream = torch.Generator().manual_seed(seed)
        self.place = {"device": device, "dtype": getattr(torch, dtype)}
        self.weight = torch.randn(self.side, self.side, generator=stream).div(self.side**0.5).to(**self.place)
        self.tones = torch.rand(self.classes, 3, 1, 1, generator=stream).to(**self.place)

    def generate(self, labels, *, seed, first_image):
        import torch

        # One stream for each image, so that an image does not depend on the batch that it is made in.
        noise = []
        for image in range(first_image, first_image + len(labels)):
            stream = torch.Generator().manual_seed(seed * 1_000_003 + image)
            noise.append(torch.randn(3, self.side, self.side, generator=stream))
        x_B3hw = torch.stack(noise).to(**self.place)
        tones_B311 = self.tones[torch.as_tensor(labels, device=self.tones.device)]
        for _ in range(self.steps):
            x_B3hw = (x_B3hw @ self.weight + tones_B311).tanh()
        return x_B3hw.float().mul(0.5).add(0.5)

    def work(self, batch):
        return Work(flops=2.0 * batch * 3 * self.side**3 * self.steps, steps=self.steps)


@hookimpl
def varbench_settings(model):
    return Settings(points=("s8", "s4"), summary="another family", provenance=Provenance(kind="ours"))


@hookimpl
def varbench_generator(setting, model):
    return Refiner(model, steps=int(setting.point[1:]))
''',
    """\
def test_half_the_steps_are_half_the_work():
    eight, four = ($name.varbench_generator(Setting(plugin="$name", point=point), SPEC).work(2) for point in ("s8", "s4"))
    assert eight.flops == 2 * four.flops
""",
)

KINDS: dict[str, tuple[str, str, str]] = {
    "depth": DEPTH,
    "cache": CACHE,
    "tokens": TOKENS,
    "training": TRAINING,
    "generator": GENERATOR,
}
"""For each kind: a summary, the module, and the test of its own rule."""

NEXT = {
    "generator": "varbench run --plugins $name",
    "training": "varbench run --plugins $name",
}
"""What to run next; a plan needs a loop of steps, and weights."""
DEFAULT_NEXT = "varbench plan $name$point --model var-d30"
POINTS = {"depth": "@half", "cache": "@w2", "tokens": "@r50"}


def files(name: str, *, kind: str, version: str) -> dict[str, str]:
    """The package's files by their paths."""
    summary, module, own = KINDS[kind]
    following = Template(NEXT.get(kind, DEFAULT_NEXT)).substitute(name=name, point=POINTS.get(kind, ""))
    return {
        "pyproject.toml": PYPROJECT.substitute(name=name, version=version),
        "README.md": README.substitute(name=name, summary=summary, next=following),
        f"{name}.py": module,
        f"tests/test_{name}.py": TEST.substitute(name=name, own=Template(own).substitute(name=name).rstrip()),
    }
