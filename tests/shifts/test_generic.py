"""Random operations: closed forms and bounds of each family, and draws that depend on image, seed and epoch alone."""

from __future__ import annotations

import math

import pytest
import torch

from qrobust.compensation.batches import mixed_batch, sampling
from qrobust.data.loading import open_data
from qrobust.data.splits import TrainingData
from qrobust.errors import InputError
from qrobust.quantization.qat import _batch
from qrobust.shifts import generic
from qrobust.shifts.filters import to_unit
from qrobust.shifts.generic import DEPTHS, FAMILIES, OPERATIONS, operations
from qrobust.shifts.registry import (
    SUITES,
    generic_conditions,
    recommendation_conditions,
    selection_conditions,
    with_mixture,
)
from qrobust.shifts.rendering import render
from qrobust.shifts.rng import Generators


def pictures(n: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """uint8 pictures with smooth parts and edges."""
    g = torch.Generator().manual_seed(n)
    coarse = torch.rand(n, channels, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    edges = torch.nn.functional.interpolate(torch.rand(n, channels, 5, 5, generator=g), size=(height, width))
    return (255 * (0.5 * smooth + 0.5 * edges).clamp(0, 1)).round().to(torch.uint8)


def flat(level: float, n: int = 64, size: int = 32) -> torch.Tensor:
    return torch.full((n, 3, size, size), round(255 * level) / 255)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_strength_changes_nothing(family: str) -> None:
    images = to_unit(pictures(16))
    result = OPERATIONS[family](images, 0.0, generators=Generators(range(16)))
    # Rounding in single precision.
    assert (result - images).abs().max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_draw_changes_more_at_more_strength(family: str) -> None:
    images = to_unit(pictures(64))
    distances = [
        (OPERATIONS[family](images, s, generators=Generators(range(64))) - images).abs().mean().item()
        for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 0.02


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (32, 48), (33, 33), (200, 130)])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_stays_an_image(family: str, size: tuple[int, int], channels: int) -> None:
    images = to_unit(pictures(6, channels, *size))
    result = OPERATIONS[family](images, torch.linspace(0, 1, 6), generators=Generators(range(6)))
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 1


def test_filters_keep_flat_pictures_and_are_convolutions() -> None:
    level = flat(0.4)
    # Kernels of unit sum; seven by seven products in single precision.
    assert (operations.filters(level, 1.0, generators=Generators(range(64))) - level).abs().max() < 1e-5
    point = torch.full((64, 3, 32, 32), 0.5)
    point[:, :, 16, 16] = 0.5 + 1e-3
    spread = (operations.filters(point, 1.0, generators=Generators(range(64))) - 0.5) / 1e-3
    reach = operations.REACH
    outside = spread.clone()
    outside[:, :, 16 - reach : 17 + reach, 16 - reach : 17 + reach] = 0
    # 0.5 has a spacing of 6e-8, a hundred-thousandth of the point's height.
    assert outside.abs().max() < 1e-3
    inside = spread - outside
    assert (inside.sum((2, 3)) - 1).abs().max() < 1e-2
    # What a kernel adds beside the identity is at most the largest difference of pixels: half the absolute weights.
    identity = torch.zeros(32, 32)
    identity[16, 16] = 1
    assert ((inside - identity).abs().sum((2, 3)) / 2).max() < operations.MOST_SIGNED + 1e-2


def test_tone_maps_equal_values_to_equal_ones_and_greys_to_one_colour() -> None:
    images = pictures(64)[:, :1].repeat(1, 3, 1, 1)
    toned = operations.tone(to_unit(images), 1.0, generators=Generators(range(64)))
    for before, after in zip(images, toned, strict=True):
        for level in before.unique()[:3]:
            assert (after[:, before[0] == level].std(1, correction=0) < 1e-6).all()
    shared = operations.tone(flat(0.3), 0.5, generators=Generators(range(64)))
    # Mixing leaves grey as it is, and for three fifths of the images all channels have one curve.
    equal = ((shared.amax(1) - shared.amin(1)).flatten(1).amax(1) < 1e-5).float().mean()
    assert 0.4 < equal < 0.8


def test_a_tone_curve_keeps_a_tenth_of_the_contrast_at_least() -> None:
    ramp = torch.linspace(0, 1, 256).expand(256, 3, 4, 256)
    toned = operations.tone(ramp, 1.0, generators=Generators(range(256)))
    spread = (toned.amax((1, 2, 3)) - toned.amin((1, 2, 3))).sort().values
    # The least slope is 0.1; saturation and a curve may take more of a few.
    assert spread[13] > 0.8 * operations.GAINS[0]


def test_a_warp_keeps_most_of_the_picture_and_its_values() -> None:
    images = to_unit(pictures(64))
    warped = operations.warp(images, 1.0, generators=Generators(range(64)))
    assert warped.max() <= images.max()
    marked = torch.zeros(256, 3, 32, 32)
    marked[:, :, 8:24, 8:24] = 1
    seen = operations.warp(marked, 1.0, generators=Generators(range(256))).mean((1, 2, 3))
    # The middle quarter of the picture stays in view: on average as large as it was, and never gone.
    assert 0.2 < seen.mean() < 0.4
    assert seen.min() > 0.02


def test_a_warp_without_displacement_is_affine() -> None:
    x = torch.linspace(-1, 1, 64).expand(64, 64)
    images = torch.stack([x, x.T, x]).div(2).add(0.5).expand(64, 3, 64, 64)
    warped = operations.warp(images, 0.5, generators=Generators(range(64)))[:, :2, 24:40, 24:40]
    second = (warped[..., 2:] - 2 * warped[..., 1:-1] + warped[..., :-2]).abs().amax((1, 2, 3))
    affine = (second < 1e-5).float().mean()
    # Half have no displacement; mirrored corners may reach the middle of a few.
    assert 0.3 < affine < 0.7


def test_noise_has_no_bias_and_is_bounded() -> None:
    grey = flat(0.5, 256)
    change = operations.noise(grey, 0.3, generators=Generators(range(256))) - grey
    deviation = change.square().mean((1, 2, 3)).sqrt()
    # Five standard errors of 1,024 to 3,072 values at the largest deviation; correlated ones count for fewer.
    assert (change.mean((1, 2, 3)).abs() < 10 * deviation / math.sqrt(1024) + 1e-6).all()
    assert deviation.max() < 1.2 * 0.3 * operations.MOST_NOISE


def test_light_leaves_a_fifth_of_the_contrast() -> None:
    images = to_unit(pictures(128))
    lit = operations.light(images, 1.0, generators=Generators(range(128)))
    shown = operations.light((images + 0.02).clamp(0, 1), 1.0, generators=Generators(range(128))) - lit
    inside = (images < 0.9) & (lit > 0) & (lit < 0.97)
    assert shown[inside].min() > 0.02 * (1 - operations.MOST_VEILED) - 1e-5
    # A veil of even light moves all values towards one colour; nothing is made brighter than light or picture.
    assert lit.max() <= 1


@pytest.mark.parametrize(("down", "up"), [(0.0, 0.0), (0.5, 0.9), (0.9, 0.0), (0.9, 0.9)])
def test_resampling_to_as_many_pixels_is_the_identity_and_keeps_flat_lines(down: float, up: float) -> None:
    kinds = torch.full((1, 1, 1), down), torch.full((1, 1, 1), up)
    same = operations._resampling(24, torch.full((1, 1, 1), 24.0), *kinds)
    assert torch.allclose(same[0], torch.eye(24), atol=1e-6)
    for kept in (5.0, 11.0, 23.0):
        weights = operations._resampling(24, torch.full((1, 1, 1), kept), *kinds)
        assert torch.allclose(weights.sum(2), torch.ones(1, 24), atol=1e-5)


def test_resampling_by_area_is_the_mean_of_blocks() -> None:
    none = torch.zeros(1, 1, 1)
    halves = operations._resampling(8, torch.full((1, 1, 1), 4.0), none, none)[0]
    assert torch.equal(halves, torch.kron(torch.eye(4), torch.full((2, 2), 0.5)))


def test_requantized_pictures_have_few_levels() -> None:
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    levels = [len(image.unique()) for image in operations.resampling(ramp, 1.0, generators=Generators(range(64)))]
    assert 2**operations.LEAST_BITS - 1 <= min(levels) < 12


def test_a_draw_follows_from_image_seed_and_epoch_alone() -> None:
    pixels, indices = pictures(40), torch.arange(100, 140)
    together, in_place = generic.draw(pixels, indices, seed=3, epoch=7)
    order = torch.randperm(40)
    shuffled, _ = generic.draw(pixels[order], indices[order], seed=3, epoch=7)
    assert torch.equal(shuffled, together[order])
    alone = [generic.draw(pixels[i : i + 1], indices[i : i + 1], seed=3, epoch=7)[0] for i in range(40)]
    assert torch.equal(torch.cat(alone), together)
    assert together.dtype == torch.uint8
    assert in_place.any()
    assert not in_place.all()
    for seed, epoch in ((3, 8), (4, 7)):
        other, _ = generic.draw(pixels, indices, seed=seed, epoch=epoch)
        assert (other != together).flatten(1).any(1).float().mean() > 0.95
    same_image, _ = generic.draw(pixels[:1].repeat(40, 1, 1, 1), indices, seed=3, epoch=7)
    assert len(same_image.flatten(1).unique(dim=0)) > 38


def test_a_draw_on_another_device_has_the_same_numbers() -> None:
    # Without an accelerator: the "meta" device computes nothing, but refuses operands that were left on the CPU.
    images = torch.empty(4, 3, 32, 32, device="meta")
    for family in ("warp", "noise", "light"):
        assert OPERATIONS[family](images, 0.5, generators=Generators(range(4))).device.type == "meta"


def test_a_draw_of_families_applies_no_other() -> None:
    level = (flat(0.5, 64) * 255).round().to(torch.uint8)
    unchanged, _ = generic.draw(level, torch.arange(64), seed=0, epoch=0, families=("filters", "warp"))
    filled = (unchanged != level).flatten(1).any(1)  # a warp may show what lies outside
    assert filled.float().mean() < 0.5
    changed, in_place = generic.draw(level, torch.arange(64), seed=0, epoch=0, families=("noise", "tone"))
    assert in_place.all()
    assert (changed != level).flatten(1).any(1).float().mean() > 0.9


def test_depths_and_shares_are_what_they_say() -> None:
    depths = torch.tensor([1, 2, 3] * 100)
    order, shares = generic._plan(Generators(range(300)), len(FAMILIES), depths)
    assert torch.equal((order >= 0).sum(1), depths)
    assert torch.allclose(shares.square().sum(1), torch.ones(300), atol=1e-5)
    for row in order:
        assert len(set(row[row >= 0].tolist())) == int((row >= 0).sum())
    assert {int(n) for n in order.unique()} == {-1, *range(len(FAMILIES))}
    assert math.isclose(sum(DEPTHS.values()), 1)


@pytest.mark.parametrize(("families", "match"), [((), "at least one family"), (("nois",), "did you mean 'noise'")])
def test_families_that_are_none_are_refused(families: tuple[str, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        generic.draw(pictures(2), torch.arange(2), seed=0, epoch=0, families=families)


def test_tiny_pictures_are_refused_where_pictures_are_rendered() -> None:
    with pytest.raises(InputError, match="at least 8 px"):
        render(pictures(1, height=7, width=7), "generic_warp", 5, table="cifar-c", seed=0)


def test_what_chooses_are_the_families_left_out() -> None:
    trained = tuple(f for f in FAMILIES if f not in ("noise", "light"))
    assert {name for name, _ in selection_conditions([], trained)} == {"generic_noise", "generic_light"}
    assert {name for name, _ in selection_conditions([("fog", 5)], FAMILIES)} == {"fog", *SUITES["generic"]}
    assert selection_conditions([("fog", 5)], ()) == [("fog", 5)]
    with pytest.raises(InputError, match="'filters'"):
        generic_conditions(["filter"])


def test_a_mixture_is_seen_by_what_learned_from_a_part_of_it() -> None:
    assert with_mixture(("fog", "generic_tone")) == ("fog", "generic_tone", "generic_mixture")
    assert with_mixture(("fog",)) == ("fog",)


def test_a_recommendation_is_chosen_by_families_that_nothing_learned_from() -> None:
    every = {(name, severity) for name in SUITES["generic"] for severity in (3, 5)}
    for learned in ((), ("fog", "gaussian_noise", "imagefolder:night")):
        conditions, withheld = recommendation_conditions(learned)
        assert (set(conditions), withheld) == (every, True)
    most = [f"generic_{family}" for family in FAMILIES if family != "light"]
    assert recommendation_conditions(most) == ([("generic_light", 3), ("generic_light", 5)], True)
    conditions, withheld = recommendation_conditions([*most, "generic_light"])
    assert (set(conditions), withheld) == (every, False)


@pytest.mark.parametrize(
    ("conditions", "families", "changed"), [([], FAMILIES, 24), ([("inversion", 5)], FAMILIES, 24), ([], (), 0)]
)
def test_a_training_batch_holds_generic_draws_and_conditions(
    conditions: list[tuple[str, int]], families: tuple[str, ...], changed: int
) -> None:
    training = open_data("digits", seed=0).training
    data = TrainingData(training, conditions, "cifar-c", families=families, generic_share=0.5)
    weights = sampling(conditions) if conditions else torch.ones(0)
    if not data.renders:
        assert data.drawn_groups(4) == [False] * 4
        return
    batch = mixed_batch(data, weights, batch_size=32, step=5, seed=1)
    differs = (batch.shifted != batch.clean).flatten(1).any(1)
    assert not differs[:8].any()
    assert differs[8:].sum() >= changed - 6  # a weak draw of a picture of few values may leave it as it is
    inverted = (batch.shifted == 255 - batch.clean).flatten(1).all(1)
    assert int(inverted.sum()) == (12 if conditions else 0)
    again = mixed_batch(data, weights, batch_size=32, step=5, seed=1)
    assert torch.equal(again.shifted, batch.shifted)
    images, clean, _ = _batch(data, 32, seed=1, step=5)
    assert int((images != clean).flatten(1).any(1).sum()) in range(10, 17)


def test_shares_are_spread_evenly() -> None:
    data = TrainingData(open_data("digits", seed=0).training, [("fog", 5)], "cifar-c", families=FAMILIES)
    assert data.drawn_groups(12) == [True, False] * 6
    for share in (0.0, 0.25, 1.0):
        groups = TrainingData(data.images, data.conditions, "cifar-c", families=FAMILIES, generic_share=share)
        assert sum(groups.drawn_groups(12)) == 12 * share


@pytest.mark.parametrize("name", SUITES["generic"])
def test_pictures_keep_their_content(name: str) -> None:
    """Sixty-four pictures are told from one another at full strength by the correlation of their 16 x 16 versions."""
    pixels = pictures(64)

    def coarse(images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(to_unit(images), 2).flatten(1)
        small = small - small.mean(1, keepdim=True)
        return small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)

    shifted = render(pixels, name, 5, table="cifar-c", seed=0)
    found = (coarse(shifted) @ coarse(pixels).T).argmax(1)
    # A picture that was moved is compared where it is no longer.
    assert (found == torch.arange(64)).float().mean() > (0.5 if name == "generic_warp" else 0.8)
