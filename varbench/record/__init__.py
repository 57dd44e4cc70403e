"""Records: what one row of one run leaves behind. `schema` says what, with the run's `options`; `store` writes and reads it,
`plan_summary` fills in plans and needs the cost model, `frames` flattens it for CSV and Parquet and needs pandas: both are
imported by their own names. All else is handed on from here when it is asked for, since whoever reads a command's arguments needs
`options` alone, and has to answer at once."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varbench.record.coding import RecordError, decode, encode
    from varbench.record.origin import (
        Environment,
        MethodSource,
        Model,
        PluginVersion,
        PublishedLine,
        RowIdentity,
        StudyWords,
        WeightFile,
    )
    from varbench.record.planned import CallRun, PlanStep, PlanSummary, Totals
    from varbench.record.schema import (
        HELD_OUT_LOSS,
        SCHEMA_VERSION,
        CalibrationRun,
        Distance,
        DrawnCalls,
        Energy,
        Evaluation,
        HeldUp,
        LargestBatch,
        LossCurve,
        Memory,
        Notice,
        PerScale,
        Quality,
        Record,
        Samples,
        Score,
        Status,
        Timing,
        TimingColumn,
        Training,
        Validity,
        Verdict,
    )
    from varbench.record.store import (
        Encoded,
        Loaded,
        NewerSchemaError,
        all_from_text,
        all_to_json,
        from_text,
        load_records,
        read_record,
        record_path,
        row_slug,
        texts_of,
        to_json,
        write_record,
    )

__all__ = [
    "HELD_OUT_LOSS",
    "SCHEMA_VERSION",
    "CalibrationRun",
    "CallRun",
    "Distance",
    "DrawnCalls",
    "Encoded",
    "Energy",
    "Environment",
    "Evaluation",
    "HeldUp",
    "LargestBatch",
    "Loaded",
    "LossCurve",
    "Memory",
    "MethodSource",
    "Model",
    "NewerSchemaError",
    "Notice",
    "PerScale",
    "PlanStep",
    "PlanSummary",
    "PluginVersion",
    "PublishedLine",
    "Quality",
    "Record",
    "RecordError",
    "RowIdentity",
    "Samples",
    "Score",
    "Status",
    "StudyWords",
    "Timing",
    "TimingColumn",
    "Totals",
    "Training",
    "Validity",
    "Verdict",
    "WeightFile",
    "all_from_text",
    "all_to_json",
    "decode",
    "encode",
    "from_text",
    "load_records",
    "read_record",
    "record_path",
    "row_slug",
    "texts_of",
    "to_json",
    "write_record",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("coding", "origin", "planned", "schema", "store"):
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
