"""What a plugin may give: small policies, asked once per row and compiled into a plan.

Each is a protocol with neutral defaults: subclass it and override what your method changes. Scales and layers are
numbered from 0. Policies that choose by content (`pick`, `fill`) are also called by the engine, with torch tensors; how
many are chosen is fixed beforehand and stands in the plan. Where the amount of work itself hangs on content (`decide`), all
ways that it may take stand there.
"""

from varbench.policies.deciding import DecisionPolicy, Preview, SoFar, Way
from varbench.policies.offered import (
    Paper,
    Parameter,
    Provenance,
    Published,
    Setting,
    Settings,
    Study,
)
from varbench.policies.replacing import (
    PARTS,
    Generator,
    LoadedModel,
    LoadedTeacher,
    LoadedTokenizer,
    Metric,
    Part,
    PartChange,
    TaughtGenerator,
    TrainedGenerator,
    Transformed,
    Work,
)
from varbench.policies.schedules import (
    Stage,
    TrainingSchedule,
    TrainStep,
)
from varbench.policies.within_loop import (
    MAIN,
    BothBranches,
    CacheStrategy,
    DepthPolicy,
    EveryScale,
    FullDepth,
    GuidancePolicy,
    StepPolicy,
    StepSpec,
    StoredForm,
    SubLayerName,
    TokenPolicy,
)

__all__ = [
    "MAIN",
    "PARTS",
    "BothBranches",
    "CacheStrategy",
    "DecisionPolicy",
    "DepthPolicy",
    "EveryScale",
    "FullDepth",
    "Generator",
    "GuidancePolicy",
    "LoadedModel",
    "LoadedTeacher",
    "LoadedTokenizer",
    "Metric",
    "Paper",
    "Parameter",
    "Part",
    "PartChange",
    "Preview",
    "Provenance",
    "Published",
    "Setting",
    "Settings",
    "SoFar",
    "Stage",
    "StepPolicy",
    "StepSpec",
    "StoredForm",
    "Study",
    "SubLayerName",
    "TaughtGenerator",
    "TokenPolicy",
    "TrainStep",
    "TrainedGenerator",
    "TrainingSchedule",
    "Transformed",
    "Way",
    "Work",
]
