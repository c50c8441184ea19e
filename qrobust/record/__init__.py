"""The record, which is what a run is for: frozen dataclasses, one JSON file with a schema name."""

from __future__ import annotations

from typing import Any

from qrobust.record.attacks import AttackResult, Attacks, WorstCase
from qrobust.record.classes import Classes, ClassifierClasses, ClassRecall, ConditionClasses, Confusion
from qrobust.record.comparison import (
    COMPARISON_SCHEMA,
    Change,
    ComparedCondition,
    ComparedRun,
    ConfigDifference,
    RunChange,
    RunComparison,
)
from qrobust.record.compensation import (
    CalibratorTraining,
    ClassifierHash,
    CleanCost,
    Compensation,
    EvolutionStrategy,
    Measures,
    PhaseFit,
    Remedy,
    RemedyGain,
    SplitSummary,
    TrainingProvenance,
    Validation,
    WeightChange,
)
from qrobust.record.confidence import ClassifierConfidence, Confidence, Foreign
from qrobust.record.data import Duplicates, LeftOut
from qrobust.record.deployment import (
    DEPLOYMENT_SCHEMA,
    GraphInput,
    Manifest,
    MeasuredAccuracy,
    RuntimeVersions,
    WebGraph,
)
from qrobust.record.fleet import DONE, FAILED, FLEET_SCHEMA, WAITING, FleetFigures, FleetRecord, FleetRun
from qrobust.record.gate import GATE_SCHEMA, BoundResult, GateResult
from qrobust.record.imported import FileCompensation, ImportedFile, ImportResult
from qrobust.record.measurements import (
    STATISTICS,
    Comparison,
    ConditionAccuracy,
    ConditionComparison,
    ConditionResult,
    Drops,
    EvaluationSummary,
    Flips,
    Footprint,
    Latency,
    LatencyRatio,
    LostImage,
    Macs,
    MeanCorruptionError,
    MissedImage,
    Overview,
    RunAccuracy,
    Summary,
    WorstClass,
)
from qrobust.record.other_images import CorruptionSet, CorruptionSetSummary, Drop, Gain, TargetImages
from qrobust.record.provenance import Hardware, ModelFile, Seeds, StageTime, hardware, versions
from qrobust.record.quantization import (
    Audit,
    BlockedOperator,
    ExplainedAudit,
    Fidelity,
    FloatIsland,
    KeptFloat,
    LayerEffect,
    LayerNoise,
    LayerSaturation,
    Parity,
    QatFit,
    QatTraining,
    Quantization,
    Reason,
    RecipeChoices,
    SaturationRisk,
    Trial,
    ValidationAgreement,
)
from qrobust.record.recommendation import (
    SLOW,
    Candidate,
    ClassEffect,
    ClassEffects,
    Effects,
    GraphEffect,
    Recommendation,
    SplitEffect,
)
from qrobust.record.run import (
    EARLIER_SCHEMAS,
    EVALUATION_SCHEMA,
    SCHEMA,
    EvaluationRecord,
    Record,
    read_evaluation,
    read_record,
)
from qrobust.record.stages import (
    CalibratorMacs,
    CompensationResult,
    EvaluationResult,
    ExportedGraphs,
    ExportResult,
    QuantizationResult,
    RemedyResult,
    RemedyTraining,
    StageResult,
)
from qrobust.record.typed_json import from_json, taken, to_json

__all__ = [
    "COMPARISON_SCHEMA",
    "DEPLOYMENT_SCHEMA",
    "DONE",
    "EARLIER_SCHEMAS",
    "EVALUATION_SCHEMA",
    "FAILED",
    "FLEET_SCHEMA",
    "GATE_SCHEMA",
    "SCHEMA",
    "STATISTICS",
    "TIMING_KEYS",
    "WAITING",
    "AttackResult",
    "Attacks",
    "Audit",
    "BlockedOperator",
    "BoundResult",
    "CalibratorMacs",
    "CalibratorTraining",
    "Candidate",
    "Change",
    "ClassEffect",
    "ClassEffects",
    "ClassRecall",
    "Classes",
    "ClassifierClasses",
    "ClassifierConfidence",
    "ClassifierHash",
    "CleanCost",
    "ComparedCondition",
    "ComparedRun",
    "Comparison",
    "Compensation",
    "CompensationResult",
    "ConditionAccuracy",
    "ConditionClasses",
    "ConditionComparison",
    "ConditionResult",
    "Confidence",
    "ConfigDifference",
    "Confusion",
    "CorruptionSet",
    "CorruptionSetSummary",
    "Drop",
    "Drops",
    "Duplicates",
    "Effects",
    "EvaluationRecord",
    "EvaluationResult",
    "EvaluationSummary",
    "EvolutionStrategy",
    "ExplainedAudit",
    "ExportResult",
    "ExportedGraphs",
    "Fidelity",
    "FileCompensation",
    "FleetFigures",
    "FleetRecord",
    "FleetRun",
    "Flips",
    "FloatIsland",
    "Footprint",
    "Foreign",
    "Gain",
    "GateResult",
    "GraphEffect",
    "GraphInput",
    "Hardware",
    "ImportResult",
    "ImportedFile",
    "KeptFloat",
    "Latency",
    "LatencyRatio",
    "LayerEffect",
    "LayerNoise",
    "LayerSaturation",
    "LeftOut",
    "LostImage",
    "Macs",
    "Manifest",
    "MeanCorruptionError",
    "MeasuredAccuracy",
    "Measures",
    "MissedImage",
    "ModelFile",
    "Overview",
    "Parity",
    "PhaseFit",
    "QatFit",
    "QatTraining",
    "Quantization",
    "QuantizationResult",
    "Reason",
    "RecipeChoices",
    "Recommendation",
    "Record",
    "Remedy",
    "RemedyGain",
    "RemedyResult",
    "RemedyTraining",
    "RunAccuracy",
    "RunChange",
    "RunComparison",
    "RuntimeVersions",
    "SaturationRisk",
    "Seeds",
    "SplitEffect",
    "SplitSummary",
    "StageResult",
    "StageTime",
    "Summary",
    "TargetImages",
    "TrainingProvenance",
    "Trial",
    "Validation",
    "ValidationAgreement",
    "WebGraph",
    "WeightChange",
    "WorstCase",
    "WorstClass",
    "from_json",
    "hardware",
    "read_evaluation",
    "read_record",
    "taken",
    "to_json",
    "versions",
    "without_timings",
]

# Keys whose values differ between two runs of the same seed.
TIMING_KEYS = frozenset(
    {
        "created",
        "command",
        "duration_s",
        "expected_s",
        "training_s",
        "latency_ms",
        "latency_interval",
        "footprint",
        "latency_ratio",
        "float_latency_ratio",
        "time_share",
        "earlier_s",
    }
)


def without_timings(value: Any) -> Any:
    """JSON of a record without what differs between two runs of the same seed: times, and the command line.

    That a remedy is refused for its time is left out, too; whether another is chosen for that is not.
    """
    if isinstance(value, dict):
        kept = {k: without_timings(v) for k, v in value.items() if k not in TIMING_KEYS}
        if "refused" in kept:
            kept["refused"] = [reason for reason in kept["refused"] if reason != SLOW]
        return kept
    if isinstance(value, list):
        return [without_timings(v) for v in value]
    return value
