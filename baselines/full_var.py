"""The full model: every layer at every scale. It gives no policy, and so is what all of them leave out.

`full_var:accounting=upstream` counts and stores as the official code does (keys in float32, the last scale kept);
every row takes the same parameter.
"""

from __future__ import annotations

from varbench import hookimpl
from varbench.policies import Provenance, Published, Setting, Settings, TrainingSchedule, TrainStep
from varbench.spec import ModelSpec

README, PAPER, CODE = "VAR README, arXiv 2404.02905v1", "final version of arXiv 2404.02905", "arXiv 2411.17787"
# Two generations of figures are in use. They belong to other checkpoints or settings: which one is meant, decides.
PRINTED: dict[str, dict[str, dict[str, float]]] = {
    "var-d16": {README: {"fid": 3.55}, PAPER: {"fid": 3.30, "is": 274.4}},
    "var-d20": {
        README: {"fid": 2.95}, PAPER: {"fid": 2.57, "is": 302.6},
        CODE: {"fid": 2.61, "is": 301, "speedup": 2.8, "latency_s": 1.29, "memory_mb": 17814},
    },
    "var-d24": {
        README: {"fid": 2.33}, PAPER: {"fid": 2.09, "is": 312.9},
        CODE: {"fid": 2.11, "is": 311, "speedup": 1.7, "latency_s": 2.07, "memory_mb": 25093},
    },
    "var-d30": {
        README: {"fid": 1.97}, PAPER: {"fid": 1.92, "is": 323.1},
        CODE: {"fid": 1.95, "is": 301, "latency_s": 3.62, "memory_mb": 39228},
    },
    "var-d36": {README: {"fid": 2.63}},
}  # fmt: skip
CONDITIONS = {
    README: "cfg 1.5, top-k 900, top-p 0.96",
    PAPER: "other checkpoints or settings than the README's",
    CODE: "one NVIDIA L20, batch 64, FP16, without the decoder; speedup over var-d30",
}
SETTINGS = {README: {"images": 50_000, "cfg": 1.5, "top_k": 900, "top_p": 0.96}}
"""What is said of the sampler behind the scores, by source."""
PUBLISHED = (
    *(
        Published(
            setting="", model=model, figures=figures, source=source, conditions=CONDITIONS[source],
            settings=SETTINGS.get(source, {}),
            grade="secondary" if source == PAPER else "primary",
        )
        for model, lines in PRINTED.items()
        for source, figures in lines.items()
    ),
    Published(
        setting="", model="var-d30", figures={"memory_mb": 39265, "kv_mb": 28677}, grade="secondary",
        source="note on arXiv 2511.16546", conditions="one NVIDIA L20, batch 64, without the decoder",
    ),
)  # fmt: skip


class FullModelAlone(TrainingSchedule):
    """Goes on training the full model: the control for schedules that also train subnets."""

    def at(self, stage: object, step: int, total: int, uniform: object) -> TrainStep:
        return TrainStep()


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        recipes=("pretrained", "continued"),
        published=PUBLISHED,
        summary="the full model; `continued` trains it on, as the control of the methods that train",
        provenance=Provenance(kind="port", url="https://arxiv.org/abs/2404.02905"),
    )


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    return FullModelAlone() if setting.recipe == "continued" else None
