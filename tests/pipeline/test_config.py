"""Configuration: one declaration of bounds, every mistake at once, entries of older versions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qrobust.compensation.config import CalibratorConfig
from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.pipeline.config import RunConfig
from qrobust.quantization.config import QATConfig, QuantizationConfig


def test_a_configuration_survives_json() -> None:
    chosen = {"model": "resnet8", "data": "digits", "shifts": ("fog",), "epsilons": (0.5,), "latency_budget": 1.5}
    config = RunConfig.from_options(chosen)
    assert RunConfig.from_json(json.loads(json.dumps(config.as_json()))) == config
    assert config.shifts.names == ("fog",)
    assert config.model.spec == "resnet8"


def test_every_mistake_is_named_at_once() -> None:
    options: dict[str, Any] = {"steps": 1, "bits": "w2a2", "seed": -1, "epsilons": (2.0,), "stpes": 3}
    with pytest.raises(InputError) as caught:
        RunConfig.from_options(options)
    assert str(caught.value).split("; ") == [
        "config.json: unknown entries ['stpes']",
        "bits: expected one of w8a8, w6a8, w4a8, w4a4, got 'w2a2'",
        "steps: expected at least 5, got 1",
        "epsilons: expected at most 1, got 2.0",
        "seed: expected at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "many"}, "steps: expected an integer, got 'many'"),
        ({"steps": True}, "steps: expected an integer, got True"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number, got nan"),
        ({"learning_rate": math.inf}, "learning_rate: expected at most 1, got inf"),
        ({"reverse_weight": math.inf}, "reverse_weight: expected at most 1000000, got inf"),
        ({"use_labels": "no"}, "use_labels: expected true or false, got 'no'"),
        ({"shifts": "fog"}, "shifts: expected a list, each text, got 'fog'"),
        ({"branches": ("residual", "hue")}, "branches: expected one of residual, photometric, geometric, got 'hue'"),
        (
            {"train_on": ()},
            "train_on: expected something to learn from, got none; without any, --target-images DIR is needed",
        ),
        ({"scenario_share": 1.5}, "scenario_share: expected at most 1, got 1.5"),
        ({"severities": ()}, "severities: expected at least one of 1 to 5, got none"),
        ({"severities": (3, 9)}, "severities: expected at most 5, got 9"),
        ({"latency_budget": 0.5}, "latency_budget: expected a factor above 1, or 0 for none, got 0.5"),
        ({"qat_ranges": "frozen"}, "qat_ranges: nothing is trained without qat_epochs"),
        ({"layer_bits": ("fc",)}, "layer_bits: expected LAYER=BITS, got 'fc'"),
        ({"keep_float": ("auto:x",)}, "keep_float: expected layer names or one auto:N, got auto:x"),
        ({"target_images": "digits"}, "target_images: expected real images as imagefolder:DIR, got 'digits'"),
        ({"rounding": "adaround"}, "rounding: adaround is for weights of fewer than 8 bits, bits are w8a8"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.from_options(options)
    assert str(caught.value) == message


def test_sections_refuse_nonsense_by_themselves() -> None:
    for make in (
        lambda: CalibratorConfig(batch_size=4),
        lambda: AttackConfig(level="harsh"),
        lambda: QuantizationConfig(storage="int4"),
        lambda: QATConfig(epochs=-1.0),
    ):
        with pytest.raises(InputError):
            make()


def test_entries_of_older_versions_are_read() -> None:
    old = {"scene_names": ["night"], "favour": 0.5, "polish": 3, "association_weight": 2.0, "scene_images": None}
    config = RunConfig.from_json(old)
    assert config.shifts.scenarios == ("night",)
    calibrator = config.calibrator
    assert (calibrator.hard_shift_share, calibrator.evolution_steps, calibrator.distillation_weight) == (0.5, 3, 2.0)
