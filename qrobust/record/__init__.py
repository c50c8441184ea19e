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
from qrobust.record.data import Duplicates, LeftOut
from qrobust.record.deployment import (
    DEPLOYMENT_SCHEMA,
    GraphInput,
    Manifest,
    MeasuredAccuracy,
    RuntimeVersions,
)
from qrobust.record.gate import GATE_SCHEMA, BoundResult, GateResult
from qrobust.record.measurements import (
    STATISTICS,
    Comparison,
    ConditionAccuracy,
    ConditionComparison,
    ConditionResult,
    Drops,
    EvaluationSummary,
    Flips,
    Latency,
    LatencyRatio,
    LostImage,
    Macs,
    MeanCorruptionError,
    Overview,
    RunAccuracy,
    Summary,
    WorstClass,
)
from qrobust.record.other_images import CorruptionSet, CorruptionSetSummary, Drop, Gain, TargetImages
from qrobust.record.provenance import Hardware, ModelFile, Seeds, StageTime, hardware, versions
from qrobust.record.quantization import (
    Audit,
    Fidelity,
    KeptFloat,
    LayerEffect,
    LayerNoise,
    LayerSaturation,
    Parity,
    QatFit,
    QatTraining,
    Quantization,
    RecipeChoices,
    SaturationRisk,
    Trial,
    ValidationAgreement,
)
from qrobust.record.recommendation import (
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
    StageResult,
)
from qrobust.record.typed_json import from_json, taken, to_json

__all__ = [
    "COMPARISON_SCHEMA",
    "DEPLOYMENT_SCHEMA",
    "EARLIER_SCHEMAS",
    "EVALUATION_SCHEMA",
    "GATE_SCHEMA",
    "SCHEMA",
    "STATISTICS",
    "TIMING_KEYS",
    "AttackResult",
    "Attacks",
    "Audit",
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
    "ClassifierHash",
    "ComparedCondition",
    "ComparedRun",
    "Comparison",
    "Compensation",
    "CompensationResult",
    "ConditionAccuracy",
    "ConditionClasses",
    "ConditionComparison",
    "ConditionResult",
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
    "ExportResult",
    "ExportedGraphs",
    "Fidelity",
    "Flips",
    "Gain",
    "GateResult",
    "GraphEffect",
    "GraphInput",
    "Hardware",
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
    "ModelFile",
    "Overview",
    "Parity",
    "PhaseFit",
    "QatFit",
    "QatTraining",
    "Quantization",
    "QuantizationResult",
    "RecipeChoices",
    "Recommendation",
    "Record",
    "Remedy",
    "RemedyGain",
    "RemedyResult",
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
        "training_s",
        "latency_ms",
        "latency_ratio",
        "float_latency_ratio",
        "time_share",
        "earlier_s",
    }
)


def without_timings(value: Any) -> Any:
    """JSON of a record without what differs between two runs of the same seed: times, and the command line."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMING_KEYS}
    if isinstance(value, list):
        return [without_timings(v) for v in value]
    return value
