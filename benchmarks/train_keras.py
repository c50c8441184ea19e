"""Train a small Keras network, quantize it to a TFLite INT8 file, and convert that to ONNX by tf2onnx.

    python3 -m venv ENV && ENV/bin/pip install tensorflow-cpu tf2onnx
    ENV/bin/python benchmarks/train_keras.py IMAGES.npz FILE.tflite FILE.onnx

It runs in an environment of its own, which `tensorflow_file.py --tensorflow ENV/bin/python` names. IMAGES.npz holds
`images` `(n, S, S, 3)` uint8 and `labels` `(n,)`. The network is like MobileNet: "SAME" padding with strides,
depthwise convolutions, ReLU6, a global average, a softmax. TFLite's converter makes its weights and activations int8,
with uint8 or float pixels for its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import tensorflow as tf

EPOCHS, BATCH, CALIBRATION = 6, 64, 200
WIDTHS, STRIDES = (16, 32, 32, 64, 64, 96), (1, 2, 1, 2, 1, 2)
OPSET = 16


def network(size: int, classes: int) -> Any:
    """Images `(N, S, S, 3)` in [0, 255] to probabilities."""
    layers = tf.keras.layers
    images = layers.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.Conv2D(WIDTHS[0], 3, strides=1, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for width, stride in zip(WIDTHS, STRIDES, strict=True):
        before = x
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(width, 1, use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.Add()([x, before]) if before.shape == x.shape else layers.ReLU(6.0)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(images, layers.Softmax()(layers.Dense(classes)(x)))


def trained(images: np.ndarray, labels: np.ndarray) -> Any:
    """The network after a few epochs, mirrored images among them."""
    tf.keras.utils.set_random_seed(0)
    found = network(images.shape[1], int(labels.max()) + 1)
    steps = EPOCHS * (len(images) // BATCH)
    rate = tf.keras.optimizers.schedules.CosineDecay(2e-3, steps)
    found.compile(tf.keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    given = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0)
    given = given.batch(BATCH, drop_remainder=True).map(
        lambda x, y: (tf.image.random_flip_left_right(tf.cast(x, tf.float32)), y)
    )
    found.fit(given, epochs=EPOCHS, verbose=2)
    return found


def quantized(found: Any, images: np.ndarray) -> bytes:
    """A TFLite file whose operators are all on int8; its input is the pixels as uint8."""
    converter = tf.lite.TFLiteConverter.from_keras_model(found)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one[None].astype(np.float32)] for one in images[:CALIBRATION])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    return bytes(converter.convert())


def main(source: str, tflite: str, path: str) -> None:
    """Train, quantize, convert, and print what did it."""
    with np.load(source) as found:
        images, labels = found["images"], found["labels"]
    with open(tflite, "wb") as out:
        out.write(quantized(trained(images, labels), images))
    command = ["-m", "tf2onnx.convert", "--tflite", tflite, "--output", path, "--opset", str(OPSET)]
    subprocess.run([sys.executable, *command], check=True)
    print(json.dumps({name: version(name) for name in ("tensorflow-cpu", "tf2onnx", "keras")}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
