"""The hooks. A package gives any of them, as functions of a module that it names under the entry-point group `varbench`.

Each example is a whole plugin: put it into a module, name the module in pyproject.toml, install, and it is a row:

    [project.entry-points.varbench]
    my_method = "my_package"

`setting` is what the row says of this plugin, with every parameter filled in; `model` is the geometry that it runs on.
A hook that is left out, or returns None, is the full model's behaviour.
"""

from varbench.hookspecs.basics import varbench_depth_policy, varbench_settings
from varbench.hookspecs.marks import PROJECT, hookimpl, hookspec
from varbench.hookspecs.over_scales import varbench_decision_policy, varbench_guidance_policy, varbench_step_policy
from varbench.hookspecs.reported import varbench_metrics, varbench_report_sections
from varbench.hookspecs.teaching import varbench_training_schedule
from varbench.hookspecs.whole_models import varbench_calibrate, varbench_generator, varbench_transform_model
from varbench.hookspecs.within_layers import varbench_cache_strategy, varbench_token_policy, varbench_width_policy

__all__ = [
    "PROJECT",
    "hookimpl",
    "hookspec",
    "varbench_cache_strategy",
    "varbench_calibrate",
    "varbench_decision_policy",
    "varbench_depth_policy",
    "varbench_generator",
    "varbench_guidance_policy",
    "varbench_metrics",
    "varbench_report_sections",
    "varbench_settings",
    "varbench_step_policy",
    "varbench_token_policy",
    "varbench_training_schedule",
    "varbench_transform_model",
    "varbench_width_policy",
]
