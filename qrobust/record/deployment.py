"""What `qrobust deploy` writes beside a graph: `manifest.json`, for whoever builds the program that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from qrobust.preprocessing import Preprocessing, Step
from qrobust.record.typed_json import JsonFile, OneOf, Unit
from qrobust.record.units import Interval, Positive, Share

Logits = Annotated[float, Unit("logits", 0)]

DEPLOYMENT_SCHEMA = "qrobust.deployment/1"


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """What a graph takes.

    Attributes:
        name: of the input.
        type: of its numbers.
        layout: order of its axes; the batch is open.
        channels: C, 3 (RGB) or 1 (luma).
        side: of the images, in px.
    """

    name: str
    type: str
    layout: str
    channels: Positive
    side: Positive


@dataclass(frozen=True, kw_only=True)
class RuntimeVersions:
    """Versions that run a graph.

    Attributes:
        measured_with: version of onnxruntime that the figures are of.
        at_least: oldest version that qrobust supports.
        opset: of the graph.
        ir_version: of the file.
    """

    measured_with: str
    at_least: str
    opset: Positive
    ir_version: Positive


@dataclass(frozen=True, kw_only=True)
class MeasuredAccuracy:
    """What the record says of a graph; the folder's test images give the same clean accuracy.

    Attributes:
        n: test images.
        clean: accuracy on clean images.
        clean_interval: Wilson's at 95 %.
        shift: mean accuracy over all conditions; null without any.
        shift_interval: its 95 % interval.
    """

    n: Positive
    clean: Share
    clean_interval: Interval
    shift: Share | None
    shift_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class WebGraph:
    """A graph that the page in `web/` shows.

    Attributes:
        file: within the folder.
        name: as the page calls it.
    """

    file: str
    name: str


@dataclass(frozen=True, kw_only=True)
class OrtCopy:
    """The same graph in onnxruntime's own format.

    Attributes:
        file: within the folder.
        written_by: version of onnxruntime, the oldest that is known to read it.
        n: images, of which both files predict the same classes.
        max_logit_difference: the largest between the two files.
    """

    file: str
    written_by: str
    n: Positive
    max_logit_difference: Logits


@dataclass(frozen=True, kw_only=True)
class Manifest(JsonFile):
    """The manifest of a deployed graph, schema `qrobust.deployment/1`.

    Attributes:
        schema: name and version of this form.
        qrobust: version of qrobust.
        graph: file name.
        name: of the graph in its run.
        target: CPU family that it was made for.
        input: what the graph takes.
        output: name of its logits `(N, K)`.
        class_names: in the order of the logits.
        steps: from an image file to the input, in order; `infer.py` executes them.
        preprocessing: the choices that the steps are of.
        onnxruntime: versions that run it.
        accuracy: as measured.
        sha256: per file of the folder but this one and the README.
        camera: file of the same graph that takes uint8 RGB frames `(N, H, W, 3)` of any size; null without one.
        web: what the page in `web/` shows, side by side; none without a page.
        ort: the same graph in onnxruntime's own format; null without one.
    """

    schema: Annotated[str, OneOf(DEPLOYMENT_SCHEMA)] = DEPLOYMENT_SCHEMA
    qrobust: str
    graph: str
    name: str
    target: str
    input: GraphInput
    output: str
    class_names: tuple[str, ...]
    steps: tuple[Step, ...]
    preprocessing: Preprocessing
    onnxruntime: RuntimeVersions
    accuracy: MeasuredAccuracy
    sha256: dict[str, str]
    camera: str | None = None
    web: tuple[WebGraph, ...] = ()
    ort: OrtCopy | None = None
