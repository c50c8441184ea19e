"""The corruptions of c-bar by closed forms and bounds, their strengths, and that nothing learns from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import qrobust
from qrobust.cli.parsing import choices
from qrobust.errors import InputError
from qrobust.shifts import c_bar
from qrobust.shifts.c_bar import noise, patterns, refraction
from qrobust.shifts.c_bar.places import places
from qrobust.shifts.c_bar.strengths import STRENGTHS
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import (
    SCENARIOS,
    SEVERITIES,
    SHIFTS,
    SUITES,
    TABLES,
    recommendation_conditions,
    selection_conditions,
    training_sets,
)
from qrobust.shifts.rng import Generators

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "c_bar.json"
NAMES = tuple(c_bar.CORRUPTIONS)


def pictures(n: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    g = torch.Generator().manual_seed(n)
    coarse = torch.rand(n, channels, 5, 5, generator=g)
    return to_unit((255 * F.interpolate(coarse, size=(height, width), mode="bilinear")).round().to(torch.uint8))


def flat(level: float, n: int = 32, size: int = 32) -> torch.Tensor:
    return torch.full((n, 3, size, size), level)


def strongest(name: str, table: str = "cifar-c") -> float:
    return STRENGTHS[table][name][-1]


@pytest.mark.parametrize("name", NAMES)
def test_no_strength_changes_nothing(name: str) -> None:
    images = pictures(8, 3, 40, 56)
    result = c_bar.CORRUPTIONS[name](images, 0.0, generators=Generators(range(8)))
    # Positions of up to 56 px in single precision.
    assert (result - images).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draw_changes_more_at_more_strength(name: str) -> None:
    images = pictures(64)
    distances = [
        (c_bar.CORRUPTIONS[name](images, s, generators=Generators(range(64))) - images).abs().mean().item()
        for s in (0.0, *STRENGTHS["cifar-c"][name])
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 48), (200, 130)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_one_channel_whatever_the_batch(name: str, size: tuple[int, int], channels: int) -> None:
    images = pictures(3, channels, *size)
    table = "imagenet-c" if size[0] > 64 else "cifar-c"
    function = c_bar.CORRUPTIONS[name]
    together = function(images, strongest(name, table), generators=Generators((5, 6, 7)))
    alone = function(images[1:2], strongest(name, table), generators=Generators((6,)))
    assert together.shape == images.shape
    assert together.isfinite().all()
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together, function(images, strongest(name, table), generators=Generators((8, 9, 10))))


def test_plane_waves_are_one_frequency() -> None:
    waves = patterns.plane_waves(flat(0.5, 16, 64), 0.2, generators=Generators(range(16))) - 0.5
    assert waves.abs().max() <= 0.2 + 1e-6
    assert torch.equal(waves[:, 0], waves[:, 2])
    # A plane wave solves d/dx d/dx w = -k^2 w: the second differences along a line are a multiple of the values.
    middle, beside = waves[:, 0, :, 1:-1], waves[:, 0, :, 2:] + waves[:, 0, :, :-2]
    factor = (beside * middle).sum((1, 2)) / middle.square().sum((1, 2))
    assert (beside - factor[:, None, None] * middle).abs().max() < 1e-4


def test_concentric_waves_are_rings() -> None:
    images = flat(0.5, 1, 65)
    rings = patterns.concentric_waves(images, 0.3, generators=Generators((3,))) - 0.5
    across, down = Generators((3,)).uniform(3)[0, :2] - 0.5
    x, y = places(images)
    distance = ((x - across) ** 2 + (y - down) ** 2).sqrt()[0, 0]
    # At equal distances, up to a thousandth of the side, equal values: the wave's steepest slope is 2 pi / 0.12.
    order = distance.flatten().argsort()
    near = distance.flatten()[order].diff() < 1e-3
    values = rings[0, :, *torch.meshgrid(torch.arange(65), torch.arange(65), indexing="ij")].flatten(1)[:, order]
    assert (values.diff().abs()[:, near]).max() <= 0.3 * 2 * math.pi / patterns.RING_LENGTHS[0] * 1e-3 + 1e-4
    assert rings.abs().max() <= 0.3 + 1e-6


def test_a_checkerboard_hides_half_and_leaves_half() -> None:
    images = pictures(64, 3, 64, 64)
    cut = patterns.checkerboard_cutout(images, 1.0, generators=Generators(range(64)))
    kept = (cut == images).all(1)
    # Squares have a side of 0.12 to 0.3: a board of an odd number of squares does not divide evenly.
    assert 0.45 < kept.float().mean() < 0.55
    greys = Generators(range(64)).uniform(5)[:, 4]
    for picture, mask, grey in zip(cut, kept, greys, strict=True):
        assert (picture[:, ~mask] - grey).abs().max() < 1e-6
    half = patterns.checkerboard_cutout(images, 0.5, generators=Generators(range(64)))
    assert torch.allclose(half, (images + cut) / 2, atol=1e-6)


@pytest.mark.parametrize(("function", "end"), [(patterns.sparkles, 1.0), (patterns.inverse_sparkles, 0.0)])
def test_stars_are_white_or_black_in_their_middle(function: object, end: float) -> None:
    images = pictures(16, 3, 64, 64)
    starry = function(images, 0.2, generators=Generators(range(16)))  # type: ignore[operator]  # of the two above
    moved = starry - images
    assert (moved * (end - 0.5)).min() >= -1e-6
    # A pixel is at most half a diagonal from the middle of a star: light there is at least exp(-0.011 / 0.016).
    assert ((starry - end).abs().amax(1).flatten(1).amin(1) < 1 - math.exp(-0.7)).all()


@pytest.mark.parametrize(("function", "exponent"), [(noise.blue_noise, 1.0), (noise.brownish_noise, -1.5)])
def test_coloured_noise_has_its_size_and_its_spectrum(function: object, exponent: float) -> None:
    added = function(flat(0.5, 64, 64), 0.1, generators=Generators(range(64))) - 0.5  # type: ignore[operator]
    # 786,432 values, of which brownish noise has some thirty independent ones a channel: 192 times thirty.
    assert added.std().item() == pytest.approx(0.1, rel=0.05)
    assert added.mean((2, 3)).abs().max() < 1e-6
    power = torch.fft.rfft2(added).abs().square().mean((0, 1))
    # Octaves apart along an axis, the power differs by twice the exponent; means of 192 spectra, within 7 % each.
    ratio = (power[0, 16] + power[16, 0]) / (power[0, 8] + power[8, 0])
    assert math.log2(ratio.item()) == pytest.approx(2 * exponent, abs=0.4)


@pytest.mark.parametrize("name", ["plasma_noise", "voronoi_noise", "perlin_noise"])
def test_noise_adds_at_most_its_amplitude_and_nothing_on_average(name: str) -> None:
    added = c_bar.CORRUPTIONS[name](flat(0.5, 256), 0.4, generators=Generators(range(256))) - 0.5
    assert added.abs().max() <= 0.4 + 1e-6
    assert added.abs().max() > 0.2
    # The mean of an image deviates by less than a third of the amplitude: of 256 by less than a fiftieth.
    assert abs(added.mean().item()) < 0.4 / 50


def test_voronoi_cells_have_one_colour_each_and_are_those_of_the_nearest_point() -> None:
    images = flat(0.5, 1, 48)
    added = noise.voronoi_noise(images, 1.0, generators=Generators((4,))) - 0.5
    drawn = Generators((4,))
    numbers = torch.cat([drawn.uniform(5) for _ in range(noise.CELLS)])
    x, y = places(images)
    points = numbers[:, :2] - 0.5
    distance = (x[0, 0] - points[:, 0, None, None]) ** 2 + (y[0, 0] - points[:, 1, None, None]) ** 2
    colours = 2 * numbers[:, 2:] - 1
    # Rounding may decide between two points that are as near.
    assert ((added[0] - colours[distance.argmin(0)].permute(2, 0, 1)).abs().amax(0) < 1e-6).float().mean() > 0.999


def test_gradient_noise_is_zero_at_the_corners_and_rises_along_the_gradient() -> None:
    angle = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    gradients = torch.stack([angle.cos(), angle.sin()], -1)
    corners = torch.arange(5.0)
    assert noise._gradient_noise(gradients, corners, corners).abs().max() == 0
    step = 1e-3
    rise = noise._gradient_noise(gradients, corners + step, corners) / step
    # Normed by the square root of two; the fade is flat at a corner, so the error is of second order.
    assert torch.allclose(rise, math.sqrt(2) * gradients[:, :5, :5, 0], atol=1e-2)
    fine = torch.linspace(0, 4.99, 200)
    assert noise._gradient_noise(gradients, fine, fine).abs().max() <= 1


def test_plasma_of_two_by_two_points_is_what_is_left_without_finer_grids() -> None:
    added = noise.plasma_noise(flat(0.5, 4, 2), 1.0, generators=Generators(range(4))) - 0.5
    assert torch.allclose(added, 2 * Generators(range(4)).uniform(3, 2, 2) - 1, atol=1e-6)


@pytest.mark.parametrize(("side", "sizes"), [(33, [2, 3, 5, 9, 17]), (34, [2, 3, 5, 9, 17, 33])])
def test_plasma_has_grids_until_one_more_would_be_as_fine_as_the_pixels(side: int, sizes: list[int]) -> None:
    drawn: list[tuple[int, ...]] = []

    class Counted(Generators):
        def uniform(self, *shape: int) -> torch.Tensor:
            drawn.append(shape)
            return super().uniform(*shape)

    noise.plasma_noise(torch.full((1, 3, 8, side), 0.5), 0.1, generators=Counted(range(1)))
    assert drawn == [(3, size, size) for size in sizes]


def ramps(n: int, size: int) -> torch.Tensor:
    """Pictures that say where each pixel is from: x in red, y in green, in sides from the left upper corner."""
    line = (torch.arange(size) + 0.5) / size
    x, y = line.expand(size, size), line[:, None].expand(size, size)
    return torch.stack([x, y, torch.ones_like(x)]).expand(n, 3, size, size).contiguous()


def test_a_ripple_displaces_along_the_line_to_its_centre_by_its_amplitude() -> None:
    images, amplitude = ramps(16, 65), 0.04
    moved = refraction.ripple(images, amplitude, generators=Generators(range(16)))[:, :2] - images[:, :2]
    centre = Generators(range(16)).uniform(4)[:, :2, None, None]
    towards = images[:, :2] - centre
    across = moved[:, 0] * towards[:, 1] - moved[:, 1] * towards[:, 0]
    inside = slice(4, -4)  # what lies outside is mirrored
    assert across[:, inside, inside].abs().max() < 1e-5
    size = moved.square().sum(1).sqrt()[:, inside, inside]
    # The interpolation between pixels at the centre, where directions change, loses a little.
    assert size.max() <= amplitude + 1e-4
    assert (size.flatten(1).amax(1) > 0.9 * amplitude).all()


def test_a_whirl_turns_its_centre_and_leaves_what_is_far() -> None:
    images, turn = ramps(32, 129), 1.0
    seen = refraction.pinch_and_twirl(images, turn, generators=Generators(range(32)))[:, :2]
    drawn = Generators(range(32)).uniform(4)
    centre = 0.5 + refraction.OFF_CENTRE * (2 * drawn[:, :2, None, None] - 1)
    away = images[:, :2] - centre
    distance = away.square().sum(1).sqrt()
    still = (distance > refraction.WHIRL)[:, None].expand(-1, 2, -1, -1)
    assert (seen - images[:, :2])[still].abs().max() < 1e-5
    near = distance < 0.03
    looked = (seen - centre).square().sum(1).sqrt()
    pinched = torch.where(drawn[:, 3] < 0.5, -1.0, 1.0)[:, None, None]
    within = (1 - distance / refraction.WHIRL) ** 2
    # Pixels are 0.008 sides apart, between which a bend of the picture is interpolated.
    assert (looked - distance * torch.exp(turn / 2 * pinched * within))[near].abs().max() < 1e-3
    cosine = ((seen - centre) * away).sum(1) / (looked * distance)
    assert (cosine[near] - torch.cos(turn * within)[near]).abs().max() < 0.02


def test_caustics_bend_by_their_depth_and_keep_the_light() -> None:
    images, depth = ramps(256, 64), 0.01
    seen = refraction.caustic_refraction(images, depth, generators=Generators(range(256)))
    light = seen[:, 2:]
    assert light.min() >= refraction.CONCENTRATION[0] - 1e-6
    assert light.max() <= refraction.CONCENTRATION[1] + 1e-6
    moved = (seen[:, :2] / light - images[:, :2])[:, :, 8:-8, 8:-8]
    # Waves longer than the picture make 256 pictures few: their mean square is known to a twentieth.
    assert moved.square().mean().sqrt().item() == pytest.approx(depth, rel=0.1)


def test_strengths_are_those_that_were_measured() -> None:
    found = json.loads(RESULTS.read_text())
    assert set(found) == set(TABLES) == set(STRENGTHS)
    for table, one in found.items():
        assert STRENGTHS[table] == {name: tuple(at["strengths"]) for name, at in one["corruptions"].items()}
        assert one["split"] == "validation"


def test_the_reference_errs_as_often_as_under_the_nineteen() -> None:
    for found in json.loads(RESULTS.read_text()).values():
        for severity, aim in enumerate(found["suite_errors"]):
            errors = [one["errors"][severity] for one in found["corruptions"].values()]
            # Twice the largest standard error of one error on n images; all are measured on the same ones.
            assert sum(errors) / len(errors) == pytest.approx(aim, abs=1 / math.sqrt(found["n"]))


def test_it_is_a_suite_of_its_own() -> None:
    assert SUITES["c-bar"] == NAMES
    assert len(NAMES) >= 10
    for name, members in (SUITES | SCENARIOS).items():
        assert name == "c-bar" or not {*members} & {*NAMES}
    for name in NAMES:
        assert all(len(SHIFTS[name].strengths[table]) == len(SEVERITIES) for table in TABLES)


def test_nothing_is_chosen_by_it() -> None:
    conditions = [*selection_conditions([("fog", 5)], ("noise",)), *recommendation_conditions(("fog",))[0]]
    assert not {name for name, _ in conditions} & {*NAMES}


def test_nobody_is_told_to_learn_from_it() -> None:
    with pytest.raises(InputError, match="got 'sparkle'") as error:
        training_sets(("sparkle",))
    assert not any(name in str(error.value) for name in ("c-bar", "sparkles"))


@pytest.mark.parametrize("name", ["c-bar", "sparkles"])
def test_nothing_learns_from_it(name: str) -> None:
    with pytest.raises(InputError, match=f"train_on: expected shifts to learn from, got {name}.* measuring alone"):
        training_sets(("generic", name))
    with pytest.raises(InputError, match="scenario: expected shifts to learn from"):
        choices({"scenario": (name,), "train_on": None})
    assert choices({"scenario": (name,)})["shifts"]  # a command that only measures


def test_no_calibrator_of_the_api_learns_from_it() -> None:
    with pytest.raises(InputError, match="conditions: expected shifts to learn from, got ripple of c-bar"):
        qrobust.fit_calibrator(None, None, None, [("ripple", 5)])  # type: ignore[arg-type]  # refused before
