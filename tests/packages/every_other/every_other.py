"""A stranger's plugin: every second layer at the late scales. Its hooks are not marked, which is allowed."""

from varbench.policies import CacheStrategy, DepthPolicy, Parameter, Settings


class EveryOther(DepthPolicy):
    def __init__(self, depth, first):
        self.depth, self.first = depth, first

    def layers(self, scale, backbone):
        return range(0, self.depth, 2 if scale >= self.first else 1)


class FirstAndLast(CacheStrategy):
    def keeps(self, layer, written, reader, group):
        return written in (0, reader - 1)


def varbench_settings(model):
    return Settings(
        points=("plain", "forgetful"),
        default_points=("plain",),
        parameters={"first": Parameter(default=3, help="scales that run whole")},
        summary="every second layer",
    )


def varbench_depth_policy(setting, model):
    return EveryOther(model.depth, setting.parameters["first"])


def varbench_cache_strategy(setting, model):
    return FirstAndLast() if setting.point == "forgetful" else None
