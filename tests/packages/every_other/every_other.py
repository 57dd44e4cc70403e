"""A stranger's plugin: every second layer at the late scales. Its hooks are not marked, which is allowed."""

from varbench.policies import CacheStrategy, DepthPolicy, Parameter, Published, Settings, Study


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
        studies={
            "where_to_begin": Study(
                title="Where to begin",
                settings=tuple(f"@forgetful:first={first}" for first in (10, 2)),
                caption="Scales that run whole.",
            )
        },
        published=(
            Published(
                setting="@plain",
                model="tiny",
                figures={"fid": 4.5, "likes": 12},
                grade="primary",
                source="our paper",
                conditions="a toaster",
            ),
            Published(
                setting="@forgetful:first=2", model="tiny", figures={"fid": 9.5}, grade="secondary", source="a note"
            ),
            Published(setting="@plain", model="var-d30", figures={"fid": 1}, grade="primary", source="another model's"),
        ),
        summary="every second layer",
    )


def varbench_depth_policy(setting, model):
    return EveryOther(model.depth, setting.parameters["first"])


def varbench_cache_strategy(setting, model):
    return FirstAndLast() if setting.point == "forgetful" else None
