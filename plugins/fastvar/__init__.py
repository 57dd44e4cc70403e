"""FastVAR: at the largest scales only the tokens that stand out are computed, the rest is restored (arXiv 2503.23367).

Points: `rN` prunes N percent of the last scale's tokens, and less of the scales before it; `skipM` leaves out the last
M scales altogether; `rNskipM` does both. `r0` prunes nothing by the same path, and must give the full model's tokens.
"""

from __future__ import annotations

from varbench import hookimpl
from varbench.policies import Parameter, Provenance, Setting, Settings, StepPolicy, TokenPolicy
from varbench.spec import ModelSpec

from . import policies


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    first, last = policies.whole_layers(model)
    return Settings(
        points=("r30", "r60", "r75", "r90", "skip1", "skip2", "r50skip2"),
        default_points=("r30", "r60", "r75", "skip1"),
        point_pattern=policies.POINT_PATTERN,
        curves={"tokens pruned": r"r\d+", "scales skipped": r".*skip\d+"},
        parameters={
            "scales": Parameter(default=2, help="how many of the largest scales are pruned; 0 prunes none"),
            "first": Parameter(default=first, help="the first N layers compute every token"),
            "last": Parameter(default=last, help="the last N layers compute every token"),
            "share": Parameter(
                default=False, help="the FFN computes the tokens that were chosen for attention, not its own"
            ),
        },
        neutral=("@r0", "@r90:scales=0"),
        summary="at the largest scales computes only the tokens that stand out, or skips the scales",
        provenance=Provenance(
            kind="port",
            note=(
                "the choice of tokens and their restoration agree with the authors' code, which is for Infinity and HART; "
                "ratios for VAR at 256 px are not published, so the sweep is ours: two scales, two thirds of the last "
                "one's ratio at the one before (r75 is HART's 50 and 75 percent), whole layers in Infinity's proportion; "
                "share is ours, where they choose for each sub-layer; "
                "where a layer did not run at the remembered scale, its other tokens pass it by"
            ),
            url="https://arxiv.org/abs/2503.23367",
        ),
    )


@hookimpl
def varbench_token_policy(setting: Setting, model: ModelSpec) -> TokenPolicy | None:
    point = policies.read_point(setting, model)
    if point.percent is None:
        return None
    return policies.PivotalTokens(
        model,
        percents=policies.pruned_scales(point, model, scales=int(setting.parameters["scales"])),
        layers=policies.pruned_layers(model, setting.parameters),
        share=bool(setting.parameters["share"]),
    )


@hookimpl
def varbench_step_policy(setting: Setting, model: ModelSpec) -> StepPolicy | None:
    point = policies.read_point(setting, model)
    return policies.WithoutLargest(model.scales - point.skipped) if point.skipped else None
