"""The README of a deployed folder: how to call the graph from Python, C++ and JavaScript."""

from __future__ import annotations

from qrobust.preprocessing import Step
from qrobust.record import Manifest
from qrobust.report.figures import bounds, percent
from qrobust.text import code, markdown

# What each CPU family needs of a session elsewhere, so that it adds as there; see docs/targets.md.
ELSEWHERE = {
    "x86-vnni": "On an x86 CPU without VNNI set the session entry `session.x64quantprecision` to `1`: its own "
    "kernels saturate, and accuracy may fall.",
    "x86-avx2": "It runs alike on every x86 CPU.",
    "arm64": "On an x86 CPU set the session entry `session.qdqisint8allowed` to `1`, so that activations stay "
    "signed.",
}

README = """\
# {title}

An INT8 image classifier for onnxruntime, made by qrobust {qrobust} for {target}.

| file | is |
|---|---|
| {graph} | the graph: images to logits, normalisation inside |
| `manifest.json` | input, preprocessing, classes, versions, accuracy and hashes, for programs |
| `infer.py` | classifies image files with numpy, Pillow and onnxruntime alone |
| `model-card.md` | what it is, what it learned from, how it was measured, where it ends |

Measured on {n} test images by onnxruntime {measured_with}: {accuracy}. It runs on onnxruntime {at_least} or newer
(opset {opset}). {elsewhere}

## Python

```
pip install numpy pillow onnxruntime
python infer.py photo.jpg
```

## Input

`{input}`: float32 `(N, {channels}, {side}, {side})`, {order} in [0, 1]. The output `{output}` holds a logit per
class, in the order of `class_names` in `manifest.json`. An image file becomes the input by these steps, all of which
`infer.py` executes:

{steps}

## C++

```cpp
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <vector>

// pixels: {channels} x {side} x {side} floats in [0, 1], channel by channel, {order}.
int classify(Ort::Session& session, std::vector<float>& pixels) {{
  const int64_t shape[] = {{1, {channels}, {side}, {side}}};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape, 4);
  const char* inputs[] = {{"{input}"}};
  const char* outputs[] = {{"{output}"}};
  auto found = session.Run(Ort::RunOptions{{nullptr}}, inputs, &input, 1, outputs, 1);
  const float* logits = found[0].GetTensorData<float>();
  return static_cast<int>(std::max_element(logits, logits + {classes}) - logits);
}}

// Ort::Env env;
// Ort::SessionOptions options;
// Ort::Session session(env, "{file}", options);
```

## JavaScript

```js
import * as ort from "onnxruntime-web"; // in Node: onnxruntime-node

const session = await ort.InferenceSession.create("{file}");

// pixels: Float32Array of {channels} x {side} x {side} in [0, 1], channel by channel, {order}.
async function classify(pixels) {{
  const input = new ort.Tensor("float32", pixels, [1, {channels}, {side}, {side}]);
  const {{ {output} }} = await session.run({{ {input}: input }});
  return {output}.data.indexOf(Math.max(...{output}.data));
}}
```
"""


CAMERA = """
## Frames of a camera

`{camera}` is the same graph with the steps above but decoding inside. Its input `frames` is uint8 RGB `(N, H, W, 3)`,
all of one size, whatever that is; a frame must lie upright.

```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{camera}")
logits = session.run(None, {{"frames": frame[None]}})[0]  # frame: uint8 (H, W, 3)
```

Its pixels are those of `infer.py` to one grey level. Resizing large frames takes its time: let the camera deliver
frames not much larger than the network's input.
"""


ORT = """
## ORT format

`{file}` is the same graph in onnxruntime's own format, for onnxruntime {written_by} or newer, also for small builds
that read no ONNX. It opens like the other one, and in `infer.py` by `--graph`. Of {n} images both predict the same
classes; logits differ by at most {difference:.2g}. Its kernels were chosen for {target} when it was written, and
session entries do not change them: on other CPUs take {graph}.
"""


WEB = """
## In a browser

`web/` holds a page that shows {shown} of a picture or of the camera, under fog, noise and darkness. It needs
onnxruntime-web beside it, once, from npm (MIT licence); from then on nothing leaves the device:

```
npm install --prefix web --ignore-scripts onnxruntime-web@{version}
python -m http.server --bind 127.0.0.1 8000
```

in this folder, then open <http://127.0.0.1:8000/web/>. The page resizes and crops as `infer.py` does, to the bit. The
browser decodes: what is lossy or half transparent may differ by a few grey levels. From another computer the page
needs HTTPS for the camera.
"""
# Of onnxruntime-web, with which the page was tried.
ONNXRUNTIME_WEB = "1.30.0"


def deployment_readme(manifest: Manifest) -> str:
    """Markdown beside the graph."""
    text = _readme(manifest) + (CAMERA.format(camera=manifest.camera) if manifest.camera else "")
    if manifest.ort:
        text += ORT.format(
            file=manifest.ort.file,
            written_by=manifest.ort.written_by,
            n=manifest.ort.n,
            difference=manifest.ort.max_logit_difference,
            target=manifest.target,
            graph=code(manifest.graph),
        )
    if not manifest.web:
        return text
    shown = " beside ".join(f"what {markdown(graph.name)} says" for graph in manifest.web)
    return text + WEB.format(shown=shown, version=ONNXRUNTIME_WEB)


def _readme(manifest: Manifest) -> str:
    accuracy, given = manifest.accuracy, manifest.input
    told = f"{percent(accuracy.clean)} {bounds(accuracy.clean_interval)} right on clean ones"
    if accuracy.shift is not None and accuracy.shift_interval is not None:
        told += f", {percent(accuracy.shift)} {bounds(accuracy.shift_interval)} under shift"
    return README.format(
        title=markdown(manifest.graph),
        qrobust=manifest.qrobust,
        target=manifest.target,
        graph=code(manifest.graph),
        file=manifest.graph,
        n=f"{accuracy.n:,}",
        measured_with=manifest.onnxruntime.measured_with,
        accuracy=told,
        at_least=manifest.onnxruntime.at_least,
        opset=manifest.onnxruntime.opset,
        elsewhere=ELSEWHERE[manifest.target],
        input=given.name,
        output=manifest.output,
        channels=given.channels,
        side=given.side,
        order="RGB" if given.channels == 3 else "luma",
        classes=len(manifest.class_names),
        steps="\n".join(f"{i}. {_step(step)}" for i, step in enumerate(manifest.steps, 1)),
    )


def _step(step: Step) -> str:
    """A step in words: what is done, and its numbers."""
    rest = ", ".join(
        f"{key.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in step.items()
        if key != "do"
    )
    return f"{str(step['do']).replace('_', ' ')}{f': {rest}' if rest else ''}"
