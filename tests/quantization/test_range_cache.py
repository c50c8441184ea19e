from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qrobust.classifier import NormalizedModel, state_hash
from qrobust.data.loading import open_data
from qrobust.data.own_images import as_split
from qrobust.data.splits import Data, Split
from qrobust.errors import InputError
from qrobust.progress import Reporter
from qrobust.quantization import ptq
from qrobust.quantization.config import QuantizationConfig
from qrobust.quantization.observers import Observer
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.quantize import calibration_batches, quantize_classifier, range_cache
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", seed=0, calibration_images=48, test_images=48)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each observed batch held."""
    counts: list[int] = []
    real = ptq.see

    def counting(graph: torch.fx.GraphModule, images: torch.Tensor) -> None:
        counts.append(len(images))
        real(graph, images)

    monkeypatch.setattr(ptq, "see", counting)
    return counts


def observed(model: NormalizedModel, split: Split, folder: Path, recipe: Recipe | None = None) -> Observed:
    cache = range_cache(QuantizationConfig(calibration_cache=str(folder)), split)
    return observe(model, calibration_batches(split, Reporter()), recipe or Recipe(), cache=cache)


def observers(found: Observed) -> list[tuple[object, ...]]:
    return [
        (o.seen, o.finite, o.low, o.high, o.average_low, o.average_high, o.left, o.width, o.counts.tolist())
        for o in found.graph.modules()
        if isinstance(o, Observer)
    ]


def test_what_one_run_observed_another_reads(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int]
) -> None:
    first = observed(small_model, digits.calibration, tmp_path / "ranges")
    assert sum(seen) == len(digits.calibration)
    seen.clear()
    second = observed(small_model, digits.calibration, tmp_path / "ranges")
    assert seen == []
    assert observers(second) == observers(first)
    assert torch.equal(second.images, first.images)
    models = [build(each, X86_VNNI, Recipe()) for each in (first, second)]
    assert state_hash(models[0]) == state_hash(models[1])


def test_a_rule_for_ranges_needs_no_second_look(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int]
) -> None:
    split = digits.calibration
    plain = quantize_classifier(small_model, split, split, QuantizationConfig(observer="percentile"))
    observed(small_model, split, tmp_path)
    seen.clear()
    config = QuantizationConfig(observer="percentile", calibration_cache=str(tmp_path))
    cached = quantize_classifier(small_model, split, split, config)
    assert seen == []
    assert state_hash(cached.module) == state_hash(plain.module)


@pytest.mark.parametrize("recipe", [Recipe(equalize=True), Recipe().keeping_float(("blocks.2.conv2",))])
def test_another_graph_is_observed_anew(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int], recipe: Recipe
) -> None:
    observed(small_model, digits.calibration, tmp_path)
    seen.clear()
    observed(small_model, digits.calibration, tmp_path, recipe)
    assert sum(seen) == len(digits.calibration)


def test_other_weights_are_observed_anew(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int]
) -> None:
    before = observed(small_model, digits.calibration, tmp_path)
    seen.clear()
    with torch.no_grad():
        next(small_model.network.parameters()).mul_(1.01)
    after = observed(small_model, digits.calibration, tmp_path)
    assert sum(seen) == len(digits.calibration)
    assert observers(after) != observers(before)


def test_other_images_another_order_and_other_pixels_are_observed_anew(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int]
) -> None:
    split = digits.calibration
    observed(small_model, split, tmp_path)
    darker = (split.read(slice(None)) // 2, split.labels)
    for other in (split.first(40), replace(split, indices=split.indices.flip(0)), as_split(darker)):
        seen.clear()
        observed(small_model, other, tmp_path)
        assert sum(seen) == len(other)


def test_another_number_of_threads_is_observed_anew(
    small_model: NormalizedModel, digits: Data, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    observed(small_model, digits.calibration, tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    observed(small_model, digits.calibration, tmp_path)
    assert sum(seen) == 2 * len(digits.calibration)


def test_nothing_is_kept_of_images_that_cannot_be_observed(
    small_model: NormalizedModel, digits: Data, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(small_model.network.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinity"):
        observed(small_model, digits.calibration, tmp_path / "ranges")
    assert not (tmp_path / "ranges").exists()


def test_a_damaged_file_is_named(small_model: NormalizedModel, digits: Data, tmp_path: Path) -> None:
    observed(small_model, digits.calibration, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=rf"calibration_cache: {file} cannot be read .*remove it"):
        observed(small_model, digits.calibration, tmp_path)


def test_a_file_is_no_folder(small_model: NormalizedModel, digits: Data, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="calibration_cache: expected a folder, got the file"):
        observed(small_model, digits.calibration, tmp_path / "file")
