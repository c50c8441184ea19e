"""A second look at each image's negative."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import qrobust, random_model

from qrobust.compensation.second_look import SecondLook, choose_threshold, familiarity
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.record import read_record
from qrobust.storage import read_json


class Bright(torch.nn.Module):
    """Knows bright images: logits (mean, 0), scaled."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([10 * mean, torch.zeros_like(mean)], 1)


def of_brightness(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_familiarity_is_the_free_energy() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert torch.allclose(familiarity(logits), torch.tensor([2.0, torch.e + torch.e**2]).log())


def test_an_image_is_turned_where_its_negative_is_known_better_by_the_threshold() -> None:
    images = of_brightness(0.9, 0.45, 0.1)  # by about -8, +1 and +8 nats
    logits, turned = Bright()(images), Bright()(1 - images)
    for threshold, expected in (
        (0.0, [logits[0], turned[1], turned[2]]),
        (4.0, [logits[0], logits[1], turned[2]]),
        (9.0, list(logits)),
    ):
        assert torch.allclose(SecondLook(Bright(), threshold)(images), torch.stack(expected))


@pytest.mark.parametrize(
    ("least", "turned"),
    [(1.0, 1), (0.75, 2), (0.0, 4)],  # the most familiar negative is right in both
)
def test_the_threshold_is_the_lowest_that_clean_images_allow(least: float, turned: int) -> None:
    better_known = torch.tensor([4.0, 3.0, 2.0, 1.0])
    right, right_turned = torch.ones(4).double(), torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    found = choose_threshold(better_known, right, right_turned, lambda scores: scores.mean().item(), least)
    expected = {1: 3.0, 2: 2.0, 4: 1.0}[turned]
    assert expected - 0.02 <= found <= expected + 0.02 or (turned == 4 and found <= 1.0)
    # No image is turned that costs too much.
    after = torch.where(better_known > found, right_turned, right).mean().item()
    assert after >= least


def test_images_that_know_their_negatives_less_are_never_turned() -> None:
    right = torch.ones(3).double()
    found = choose_threshold(torch.tensor([-3.0, -2.0, -1.0]), right, 0 * right, lambda s: s.mean().item(), 1.0)
    assert found == 0.0


def test_the_graph_does_as_torch_does(tmp_path: Path) -> None:
    classifier, images = random_model(), torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    better_known = familiarity(classifier(1 - images)) - familiarity(classifier(images))
    model = SecondLook(classifier, float(better_known.sort().values[2:4].mean()))
    export(model, tmp_path / "second.onnx", 16)
    wanted = model(images)
    assert torch.allclose(OnnxClassifier(tmp_path / "second.onnx")(images), wanted, atol=1e-4)
    assert torch.allclose(OnnxClassifier(tmp_path / "second.onnx")(images[:1]), wanted[:1], atol=1e-4)
    assert (wanted != classifier(images)).any(1).sum() == 4


@pytest.mark.slow  # two graphs are exported and all are measured
def test_a_run_takes_a_second_look(run_copy: Path) -> None:
    for remedy in ("second-look", "calibrator+second-look"):
        result = qrobust("compensate", run_copy, "--remedy", remedy, "-q")
        assert result.exit_code == 0, result.output
    for command in (["evaluate", run_copy, "-q"], ["report", run_copy]):
        result = qrobust(*command)
        assert result.exit_code == 0, result.output
    record = read_record(run_copy / "record.json")
    rows = {row.remedy: row for row in record.remedies}
    alone, both, calibrator = rows["second-look"], rows["calibrator+second-look"], rows["compensated"]
    assert (alone.trained_on, both.trained_on) == ((), calibrator.trained_on)
    assert alone.macs == record.summary.macs.classifier
    assert both.macs == alone.macs + 2 * calibrator.macs
    for name in ("second-look", "calibrator+second-look"):
        assert read_json(run_copy / "stages" / f"{name}.json")["threshold"] >= 0
        assert record.audit[name].integer_ops == record.audit[name].quantizable_ops
    # A calibrator that is made anew is another one.
    result = qrobust("compensate", run_copy, "--steps", 6, "-q")
    assert result.exit_code == 0, result.output
    assert (run_copy / "stages" / "second-look.json").exists()
    assert not (run_copy / "stages" / "calibrator+second-look.json").exists()


def test_behind_no_calibrator_it_is_refused(run_copy: Path) -> None:
    assert qrobust("compensate", run_copy, "--remedy", "none", "-q").exit_code == 0
    result = qrobust("compensate", run_copy, "--remedy", "calibrator+second-look", "-q")
    assert result.exit_code == 2
    assert "needs the run's calibrator" in result.output
