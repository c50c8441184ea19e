"""The numbers that a record holds: each with its unit and range, which the reader checks and the docs print."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from qrobust.record.typed_json import Unit

Share: TypeAlias = Annotated[float, Unit("fraction", 0, 1)]
Fraction: TypeAlias = Annotated[float, Unit("fraction")]
Points: TypeAlias = Annotated[float, Unit("percentage points", -100, 100)]
TwicePoints: TypeAlias = Annotated[float, Unit("percentage points", -200, 200)]
PValue: TypeAlias = Annotated[float, Unit("p-value", 0, 1)]
Interval: TypeAlias = tuple[Share, Share]
PointsInterval: TypeAlias = tuple[Points, Points]
TwicePointsInterval: TypeAlias = tuple[TwicePoints, TwicePoints]
Count: TypeAlias = Annotated[int, Unit("", 0)]
Positive: TypeAlias = Annotated[int, Unit("", 1)]
Severity: TypeAlias = Annotated[int, Unit("", 0, 5)]
Seconds: TypeAlias = Annotated[float, Unit("s", 0)]
Milliseconds: TypeAlias = Annotated[float, Unit("ms", 0)]
Bytes: TypeAlias = Annotated[int, Unit("bytes", 0)]
Ratio: TypeAlias = Annotated[float, Unit("times", 0)]
RatioInterval: TypeAlias = tuple[Ratio, Ratio]
Decibels: TypeAlias = Annotated[float, Unit("dB")]
Nats: TypeAlias = Annotated[float, Unit("nats")]
Epsilon: TypeAlias = Annotated[float, Unit("on the [0, 1] scale", 0)]
