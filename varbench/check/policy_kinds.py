"""Methods that `varbench new-plugin` begins with: one policy each. A kind is a summary, the module, and its own rule's test."""

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

STEP = (
    "leaves out one of the scales",
    '''\
"""Leaves out one scale near the end: the next one is made from what was there before it. Replace this rule by yours."""

from varbench import hookimpl
from varbench.policies import Provenance, Settings, StepPolicy, StepSpec


class Without(StepPolicy):
    def __init__(self, model, left_out):
        self.kept = [scale for scale in range(model.scales) if scale not in left_out]

    def steps(self):
        return [StepSpec(scales=(scale,)) for scale in self.kept]


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("every", "fewer"),
        neutral=("@every",),
        summary="leaves out the scale before the last",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_step_policy(setting, model):
    return Without(model, {model.scales - 2} if setting.point == "fewer" else set())
''',
    """\
def test_the_scale_before_the_last_is_left_out():
    policy = $name.varbench_step_policy(Setting(plugin="$name", point="fewer"), SPEC)
    assert [step.scales for step in policy.steps()] == [(0,), (1,), (2,), (3,), (5,)]
""",
)

GUIDANCE = (
    "stops guidance before the last scales",
    '''\
"""Stops the unlabelled branch before the last scales, which are then drawn without guidance. Replace this rule by yours."""

from varbench import hookimpl
from varbench.policies import GuidancePolicy, Provenance, Settings


class OffAtTheEnd(GuidancePolicy):
    def __init__(self, model, last):
        self.first_without = model.scales - last

    def branches(self, scale):
        return "both" if scale < self.first_without else "labelled"


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("off1", "off2"),
        point_pattern="off[0-9]+",
        neutral=("@off0",),
        summary="no guidance at the last scales",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_guidance_policy(setting, model):
    return OffAtTheEnd(model, int(setting.point[3:]))
''',
    """\
def test_only_the_last_scales_are_without():
    policy = $name.varbench_guidance_policy(Setting(plugin="$name", point="off2"), SPEC)
    assert [policy.branches(scale) for scale in (0, 3, 4, 5)] == ["both", "both", "labelled", "labelled"]
""",
)
