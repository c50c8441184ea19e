"""Each corruption and transformation against a closed form, a bound or an independent reference."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust.shifts import corruptions, transformations
from qrobust.shifts.corruptions import blur
from qrobust.shifts.corruptions.frost import PICTURES, frost_picture
from qrobust.shifts.filters import mirrored, pad_reflect, smooth, to_unit
from qrobust.shifts.registry import (
    GRIDS,
    SHIFTS,
    SUITES,
    TABLES,
    defined_conditions,
)
from qrobust.shifts.rendering import render, render_grid
from qrobust.shifts.rng import Generators

NONE = Generators(())


def generators(n: int, start: int = 0) -> Generators:
    return Generators(range(start, start + n))


def pictures(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Colourful uint8 pictures with edges, gradients and noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=g)
    smooth_part = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    edges = torch.nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=g), size=(height, width))
    noise = torch.rand(n, 3, height, width, generator=g)
    return (255 * (0.5 * smooth_part + 0.35 * edges + 0.15 * noise).clamp(0, 1)).round().to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8)])
def test_pixelate_leaves_one_pixel_a_side_at_least(height: int, width: int) -> None:
    """An eighth of a side of eight is one pixel: lines across it have one value."""
    pixels = pictures(1, height, width)
    found = corruptions.pixelate(pixels, 0.12, generators=NONE)
    short = 3 if width < height else 2
    assert (found == found.select(short, 0).unsqueeze(short)).all()


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (4, 4)])
@pytest.mark.parametrize("reach", [0, 1, 3, 7])
def test_reflecting_goes_on_in_steps_that_the_shorter_side_allows(size: tuple[int, int], reach: int) -> None:
    image = np.arange(math.prod(size), dtype=np.float32).reshape(size)
    found = pad_reflect(torch.from_numpy(image)[None, None], reach)[0, 0]
    while reach > 0:
        step = min(reach, *(side - 1 for side in image.shape))
        image, reach = np.pad(image, step, mode="reflect"), reach - step
    assert np.array_equal(found, image)


@pytest.mark.parametrize("name", SHIFTS)
def test_any_size_and_bit_equal_alone_together_and_with_two_threads(name: str) -> None:
    for height, width, table in ((32, 32, "cifar-c"), (33, 33, "imagenet-c"), (40, 56, "imagenet-c")):
        pixels = pictures(4, height, width)
        together = render(pixels, name, 5, table=table, seed=3)
        assert together.shape == pixels.shape
        assert together.dtype == torch.uint8
        alone = torch.cat([render(p[None], name, 5, table=table, seed=3) for p in pixels.flip(0)]).flip(0)
        assert torch.equal(together, alone)
        assert not torch.equal(together, pixels)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(together, render(pixels, name, 5, table=table, seed=3))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_photograph_sized_image(name: str) -> None:
    pixels = pictures(1, 224, 224)
    shifted = render(pixels, name, 5, table="imagenet-c", seed=0)
    assert shifted.shape == pixels.shape
    assert not torch.equal(shifted, pixels)


# Not monotone as published: brightness meets white; spatter, glass blur and elastic change several constants at
# once; saturate goes down first and then up; frost's pictures differ more than its severities; box filters
# hit the edges of these pictures or miss them. Of random operations, and of c-bar's patterns, another one is drawn at
# each severity; tests of their own look at one draw.
UNEVEN = {
    *SUITES["generic"],
    *SUITES["c-bar"],
    "spatter",
    "glass_blur",
    "elastic_transform",
    "saturate",
    "frost",
    "snow",
    "jpeg_chain",
    "fog",
    "pixelate",
    "resize_area",
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", [n for n in SHIFTS if n not in UNEVEN])
def test_severity_hurts_more_and_more(name: str, table: str) -> None:
    pixels = pictures(12, 64, 64)
    distances = [
        (render(pixels, name, s, table=table, seed=0).float() - pixels.float()).abs().mean().item()
        for _, s in defined_conditions((name,), (1, 2, 3, 4, 5), table)
    ]
    assert distances == sorted(distances)


def test_clean_limits() -> None:
    images = to_unit(pictures(2, 48, 48))
    c, t = corruptions, transformations
    unchanged = {
        "gaussian": c.gaussian_noise(images, 0.0, generators=generators(2)),
        "speckle": c.speckle_noise(images, 0.0, generators=generators(2)),
        "impulse": to_unit(c.impulse_noise(pictures(2, 48, 48), 0.0, generators=generators(2))),
        "blur": c.gaussian_blur(images, 0.1, generators=NONE),
        "saturate": c.saturate(images, 1.0, 0.0, generators=NONE),
        "brightness": c.brightness(images, 0.0, generators=NONE),
        "contrast": c.contrast(images, 1.0, generators=NONE),
        "frost": c.frost(images, 1.0, 0.0, 1.0, generators=generators(2)),
        "fog": c.fog(images, 0.0, 2.0, generators=generators(2)),
        "elastic": c.elastic_transform(images, 1e-9, 0.05, 1e-9, generators=generators(2)),
        "hue": t.hue(images, 360.0, generators=NONE),
        "saturation": t.saturation(images, 1.0, generators=NONE),
        "sharpness": t.sharpness(images, 1.0, generators=NONE),
        "vignetting": t.vignetting(images, 0.0, generators=NONE),
        "rolling": t.rolling_shutter(images, 0.0, generators=NONE),
        "perspective": t.perspective(images, 0.0, generators=NONE),
        "pose": t.pose(images, 0.0, 0.0, 0.0),
        "flips": t.vertical_flip(t.vertical_flip(images, generators=NONE), generators=NONE),
    }
    for name, result in unchanged.items():
        # Rounding in single precision, magnified by sampling positions of up to 48 px.
        assert (result - images).abs().max() < 1e-4, name


@pytest.mark.parametrize("photons", [3.0, 60.0, 500.0])
def test_counts_are_poisson(photons: float) -> None:
    level, draws = 128, 400_000
    images = torch.full((1, 1, 1, draws), level / 255)
    counts = corruptions.poisson(images, photons, generators=generators(1)).long().flatten()
    mean = photons * level / 255
    k = np.arange(int(mean + 12 * math.sqrt(mean) + 20))
    expected = draws * np.exp(k * math.log(mean) - mean - np.array([math.lgamma(i + 1) for i in k]))
    seen = torch.bincount(counts, minlength=len(k)).numpy()
    common = expected > 10
    statistic = float(((seen - expected)[common] ** 2 / expected[common]).sum())
    # Chi-square has mean df and deviation sqrt(2 df); five deviations.
    df = int(common.sum())
    assert abs(statistic - df) < 5 * math.sqrt(2 * df)
    assert seen[~common].sum() == pytest.approx(expected[~common].sum(), abs=5 * math.sqrt(10 * (~common).sum()))
    assert corruptions.poisson(torch.zeros(1, 3, 8, 8), photons, generators=generators(1)).max() == 0


def test_random_numbers_of_an_image_are_its_own_and_even() -> None:
    together = generators(3)
    first, second = together.words(5), together.words(300_001)
    for i in range(3):
        alone = generators(1, i)
        assert torch.equal(alone.words(5)[0], first[i])
        assert torch.equal(alone.words(300_001)[0], second[i])
    assert first.unique().numel() == 15
    # 18 expected in each of 65,536 cells of all three: chi-square has the mean df and the deviation sqrt(2 df).
    expected = 3 * 300_001 / 65_536
    statistic = ((torch.bincount(second.flatten(), minlength=65_536) - expected) ** 2 / expected).sum().item()
    assert abs(statistic - 65_535) < 5 * math.sqrt(2 * 65_535)
    uniform = generators(1).uniform(2, 200_000)[0].double()
    # Standard errors: 0.0006 of a mean, 0.0016 of a correlation.
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)
    assert abs(torch.corrcoef(uniform)[0, 1].item()) < 0.01
    neighbours = torch.stack([uniform[0, 1:], uniform[0, :-1]])
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 0.01


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    normal = generators(1).normal(1_000_000)[0].double()
    for power, moment, error in ((1, 0, 0.001), (2, 1, 0.0014), (3, 0, 0.0039), (4, 3, 0.0098)):
        assert (normal**power).mean().item() == pytest.approx(moment, abs=5 * error + 0.005)


def test_speckle_scales_with_the_pixel() -> None:
    noise = corruptions.speckle_noise(torch.full((4, 3, 64, 64), 0.25), 0.2, generators=generators(4)) - 0.25
    # 49,152 samples: the standard error of their standard deviation is 0.3 %.
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("sigma", [0.7, 3.0, 6.0])
def test_blurs_spread_a_point_by_their_sigma(sigma: float) -> None:
    point = torch.zeros(1, 1, 101, 101)
    point[..., 50, 50] = 1
    spread = smooth(point, sigma)[0, 0]
    offset = torch.arange(101.0) - 50
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    # Cut at four sigma, a Gaussian loses a thousandth of its variance; sampled at 0.7 px, about a hundredth.
    assert (spread.sum(0) * offset**2).sum().item() == pytest.approx(sigma**2, rel=0.02)


def test_both_ways_to_smooth_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    for mirror in (False, True):
        direct = smooth(images, 2.0, mirror=mirror)
        monkeypatch.setattr("qrobust.shifts.filters.DIRECT_TAPS", 0)
        by_matrix = smooth(images, 2.0, mirror=mirror)
        monkeypatch.undo()
        assert torch.allclose(direct, by_matrix, atol=1e-5)
    assert mirrored(torch.arange(-4, 8), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


@pytest.mark.parametrize(("reach", "rounds"), [(1, 1), (1, 2), (2, 3), (4, 2)])
def test_glass_blur_is_the_sequence_pixel_by_pixel(reach: int, rounds: int) -> None:
    height, width = 34, 41
    images = to_unit(pictures(3, height, width))
    together = corruptions.glass_blur(images, 0.1, reach, rounds, generators=generators(3))  # too small to blur
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    words = generators(3).words(rounds, len(rows), len(columns))
    draws = (words * (2 * reach) ** 2 >> 16).tolist()
    for image, result, drawn in zip(images, together, draws, strict=True):
        pixels = (image * 255).floor().div(255).clone()
        for turn in range(rounds):
            for h in rows:
                for w in columns:
                    down, right = divmod(drawn[turn][h - reach - 1][w - reach - 1], 2 * reach)
                    pixels[:, h, w] = pixels[:, h + down - reach, w + right - reach]
        assert torch.equal(pixels, result)


def test_defocus_by_sums_and_by_fourier_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images = to_unit(pictures(2, 48, 40))
    direct = corruptions.defocus_blur(images, 1.5, 0.1, generators=NONE)
    monkeypatch.setattr("qrobust.shifts.filters.DIRECT_TAPS", 0)
    assert torch.allclose(direct, corruptions.defocus_blur(images, 1.5, 0.1, generators=NONE), atol=1e-5)


def test_defocus_kernels_hold_no_weight_that_changes_nothing() -> None:
    for table in TABLES:
        for strength in SHIFTS["defocus_blur"].strengths[table]:
            assert strength is not None
            kernel = blur._disk_kernel(*strength)
            assert kernel[kernel > 0].min() >= blur.NEGLIGIBLE


def test_motion_blur_moves_a_point_along_its_direction() -> None:
    point = torch.zeros(1, 3, 65, 65)
    point[..., 32, 32] = 1
    for seed in range(5):
        trace = corruptions.motion_blur(point, 10, 5.0, generators=generators(1, seed))[0, 0]
        assert trace.sum().item() == pytest.approx(1, abs=1e-5)
        angle = generators(1, seed).uniform().item() * math.pi / 2 - math.pi / 4
        y, x = torch.nonzero(trace).double().sub(32).unbind(1)
        # The picture looks ahead along the direction, so a point trails behind it, half a pixel to either side.
        across = x * math.sin(angle) - y * math.cos(angle)
        assert across.abs().max() <= 0.75
        assert x.max() <= 0


def test_zoom_blur_keeps_flat_pictures_and_the_centre() -> None:
    flat = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
    assert torch.allclose(corruptions.zoom_blur(flat, 0.02, 11, generators=NONE) * 255, flat.float(), atol=1e-3)
    ramp = (3 * torch.arange(65)).to(torch.uint8).expand(1, 3, 65, 65)
    blurred = corruptions.zoom_blur(ramp, 0.03, 11, generators=NONE)[0, 0, 32] * 255 / 3
    factors = torch.tensor([1.0] + [1 + 0.03 * i for i in range(11)])
    wanted = 32 + (torch.arange(65) - 32)[:, None] / factors
    # The middle that is enlarged is a whole number of pixels wide.
    assert (blurred - wanted.mean(1)).abs().max() < 0.75


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_zoom_blur_by_a_matrix_is_that_of_its_layers(severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pictures(5, 32, 40)
    strength = SHIFTS["zoom_blur"].strengths["cifar-c"][severity - 1]
    assert strength is not None
    at_once = corruptions.zoom_blur(pixels, *strength, generators=NONE)
    # Sums are exact, so neither neighbours nor their number change a bit.
    assert torch.equal(at_once[3:4], corruptions.zoom_blur(pixels[3:4], *strength, generators=NONE))
    monkeypatch.setattr(blur, "MATRIX_PIXELS", 0)
    layered = corruptions.zoom_blur(pixels, *strength, generators=NONE)
    # There each layer is rounded to 8 bits: by half a level at most, and a quarter on average.
    assert (at_once - layered).abs().max() * 255 <= 0.8
    assert (at_once - layered).abs().mean() * 255 <= 0.25


def test_jpeg_is_that_of_pillow() -> None:
    pixels = pictures(3, 40, 56)
    for quality, image in zip((7, 50, 80), pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        pillow = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
        # Both decode by libjpeg; two versions of it may differ by a level.
        difference = corruptions.jpeg_compression(image[None], quality, generators=NONE)[0].int() - pillow.int()
        assert difference.abs().max() <= 1


def test_snow_falls_in_front_of_a_brighter_scene() -> None:
    black = torch.zeros(2, 3, 64, 64)
    dry = corruptions.snow(black, -9.0, 0.0, 3, 0.5, 10, 4, 0.8, generators=generators(2))
    assert torch.allclose(dry, torch.full_like(dry, 0.2 * 0.5), atol=1e-6)
    wet = corruptions.snow(black, 0.3, 0.3, 3, 0.5, 10, 4, 0.8, generators=generators(2))
    assert (wet >= dry).all()
    flakes = wet - dry
    assert torch.equal(flakes[:, 0], flakes[:, 1])
    assert torch.allclose(flakes, flakes.flip(2, 3), atol=1e-6)  # the layer and the same upside down
    assert 0.05 < flakes.mean() < 0.9


def test_frost_pictures_have_their_colour_and_spread() -> None:
    for index in range(PICTURES):
        picture = frost_picture(index, 1.0, 224)
        assert picture.shape == (3, 512, 512)
        assert 0 <= picture.min() < picture.max() <= 1
        assert 0.05 < picture.std((1, 2)).mean() < 0.2
    means = torch.stack([frost_picture(i, 1.0, 224).mean((1, 2)) for i in range(PICTURES)])
    assert (means[:, 2] > means[:, 0]).all()  # bluish
    assert frost_picture(0, 0.2, 32).shape == (3, 102, 102)
    assert frost_picture(0, 1.0, 1000).shape == (3, 1100, 1100)
    black = torch.zeros(20, 3, 64, 64)
    frozen = corruptions.frost(black, 1.0, 0.5, 1.0, generators=generators(20))
    assert frozen.mean().item() == pytest.approx(0.5 * means.mean().item(), rel=0.15)  # 20 of the five pictures


def test_spatter_leaves_what_is_dry() -> None:
    images = to_unit(pictures(4, 64, 64))
    for is_mud, threshold in ((False, 0.68), (True, 0.65)):
        arguments = (0.65, 0.3, 2.0, threshold, 0.5, is_mud)
        result = corruptions.spatter(images, *arguments, generators=generators(4))
        changed = ((result - images).abs() > 1e-6).any(1).float().mean()
        assert 0.005 < changed < 0.9
    dry = corruptions.spatter(images, 0.1, 0.01, 2.0, 0.69, 0.5, False, generators=generators(4))
    assert torch.equal(dry, images)
    soaked = corruptions.spatter(images, 0.9, 0.01, 2.0, 0.69, 0.5, True, generators=generators(4))
    mud = torch.tensor([63, 42, 20])[:, None, None] / 255
    assert torch.allclose(soaked, mud.expand_as(soaked), atol=1e-5)


def test_saturate_agrees_with_colorsys() -> None:
    images = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[:, :, 0, 0] = 0.5  # grey: no hue, so red
    images[:, :, 0, 1] = 0.0
    for factor, offset in ((0.3, 0.0), (2.0, 0.1), (20.0, 0.2)):
        ours = corruptions.saturate(images, factor, offset, generators=NONE)
        for y in range(6):
            for x in range(6):
                h, s, v = colorsys.rgb_to_hsv(*images[0, :, y, x].tolist())
                wanted = colorsys.hsv_to_rgb(h, min(1, s * factor + offset), v)
                assert ours[0, :, y, x].tolist() == pytest.approx(wanted, abs=1e-5)


def test_elastic_displaces_by_the_pixels_it_says() -> None:
    # On ramps a displaced pixel shows where it comes from.
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    ramps = torch.stack([x, y, x]).expand(20, -1, -1, -1).contiguous()
    moved = transformations.elastic(ramps, 4.0, generators=generators(20)) - ramps
    inner = moved[:, :2, 40:-40, 40:-40]
    # About 20 x 17 independent patches; the mean length's relative standard error is 3 %.
    assert inner.square().sum(1).sqrt().mean().item() == pytest.approx(4.0, rel=0.15)


def test_corners_of_the_affine_map_move_evenly() -> None:
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    ramps = torch.stack([x, y, x]).expand(200, -1, -1, -1).contiguous()
    moved = corruptions.elastic_transform(ramps, 0.0, 0.1, 0.02, generators=generators(200))
    # The three corners lie at 48 +- 32 px; each moves by up to 2 % of 96 px on each axis.
    shift = (moved - ramps)[:, :2, 16, 16]
    assert shift.abs().max() < 0.02 * 96 * 1.1  # a map back, so slightly more than the map there
    assert shift.std().item() == pytest.approx(0.02 * 96 / math.sqrt(3), rel=0.15)


def test_perspective_shortens_the_far_edge() -> None:
    white = torch.ones(1, 3, 100, 100)
    seen = (transformations.perspective(white, 0.4, generators=NONE)[0, 0] > 0.5).sum(1)
    # Straight edges: every row has the width that lies on the line, to a pixel on either side.
    assert (seen - torch.linspace(60, 100, 100)).abs().max() < 2.5


def test_pose_is_rotation_and_translation() -> None:
    images = to_unit(pictures(2, 48, 48))
    t = transformations
    assert torch.allclose(t.pose(images, 20.0, 0.0, 0.0), t.rotation(images, 20.0, generators=NONE), atol=1e-5)
    assert torch.allclose(t.pose(images, 0.0, 0.1, 0.1), t.translation(images, 0.1, generators=NONE), atol=1e-4)
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1  # the centre stays when turned, and is then moved by 4 px right, 8 px up
    moved = t.pose(point, 30.0, 4 / 33, -8 / 33)[0, 0]
    assert divmod(int(moved.argmax()), 33) == (8, 20)


def test_colour_closed_forms() -> None:
    images = to_unit(pictures(2, 16, 16))
    t = transformations
    luma = torch.tensor(t.LUMA)
    grey = t.grey(images, generators=NONE)
    assert torch.allclose(grey[:, 0], torch.einsum("c,nchw->nhw", luma, images), atol=1e-6)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert torch.allclose(t.saturation(images, 0.0, generators=NONE), grey, atol=1e-6)
    turned = t.hue(images, 70.0, generators=NONE)
    # YIQ is published with three digits, so luma is kept to about that.
    assert torch.allclose(torch.einsum("c,nchw->nhw", luma, turned), grey[:, 0], atol=3e-3)
    assert torch.allclose(t.hue(turned, 290.0, generators=NONE), images, atol=1e-4)
    assert torch.allclose(t.gamma(images, 2.0, generators=NONE), images.square())
    levels = t.posterize(images, 2, generators=NONE).mul(255).round().unique()
    assert set(levels.int().tolist()) <= {0, 64, 128, 192}
    solar = t.solarize(images, 0.5, generators=NONE)
    assert torch.equal(solar, torch.minimum(images, 1 - images).where(images > 0.5, images))
    assert torch.equal(t.horizontal_flip(images, generators=NONE)[..., 0], images[..., -1])
    assert torch.equal(t.vertical_flip(images, generators=NONE)[..., 0, :], images[..., -1, :])


def test_a_flat_picture_has_no_detail_to_sharpen_resize_or_mosaic() -> None:
    flat = torch.full((2, 3, 40, 32), 0.4)
    t = transformations
    assert torch.allclose(t.sharpness(flat, 9.0, generators=NONE), flat, atol=1e-5)
    assert torch.allclose(t.bayer_mosaic(flat, 0.0, generators=generators(2)), flat, atol=1e-5)
    pixels = torch.full((2, 3, 40, 32), 100, dtype=torch.uint8)
    for resize in (t.resize_nearest, t.resize_bilinear, t.resize_bicubic, t.resize_area):
        assert torch.equal(resize(pixels, 0.6, generators=NONE), pixels)
        textured = pictures(2, 40, 32)
        assert torch.equal(resize(textured, 1.0, generators=NONE), textured)


def test_the_mosaic_keeps_the_colour_each_pixel_saw() -> None:
    images = to_unit(pictures(1, 16, 16))
    seen = transformations.bayer_mosaic(images, 0.0, generators=generators(1))
    assert torch.allclose(seen[:, 0, ::2, ::2], images[:, 0, ::2, ::2])
    assert torch.allclose(seen[:, 1, ::2, 1::2], images[:, 1, ::2, 1::2])
    assert torch.allclose(seen[:, 2, 1::2, 1::2], images[:, 2, 1::2, 1::2])
    green = images[:, 1]
    neighbours = (
        green[:, 1:-3:2, 2:-2:2] + green[:, 3:-1:2, 2:-2:2] + green[:, 2:-2:2, 1:-3:2] + green[:, 2:-2:2, 3:-1:2]
    )
    assert torch.allclose(seen[:, 1, 2:-2:2, 2:-2:2], neighbours / 4, atol=1e-6)


def test_vignetting_loses_in_the_corner_what_it_says() -> None:
    white = torch.ones(1, 3, 401, 401)
    dimmed = transformations.vignetting(white, 0.5, generators=NONE)[0, 0]
    assert dimmed[200, 200].item() == pytest.approx(1, abs=1e-4)
    assert dimmed[0, 0].item() == pytest.approx(0.5, abs=0.01)  # the corner pixel's centre is half a pixel inside


def test_low_light_has_the_noise_of_its_photons() -> None:
    dark = transformations.low_light(torch.full((4, 3, 64, 64), 0.6), 0.3, 100.0, generators=generators(4))
    assert dark.mean().item() == pytest.approx(0.18, rel=0.01)
    # Counts of mean 60 have variance 60. 49,152 samples: the variance's standard error is 0.6 %.
    assert dark.var().item() == pytest.approx(60 * (0.3 / 100) ** 2, rel=0.05)


def test_rolling_shutter_moves_whole_rows() -> None:
    line = torch.zeros(1, 3, 60, 60)
    line[..., 30] = 1
    moved = transformations.rolling_shutter(line, 0.1, generators=NONE)[0, 0]
    position = (moved * torch.arange(60)).sum(1) / moved.sum(1)
    row = (torch.arange(60) + 0.5) / 60
    # By up to a tenth of 60 px, one and a half swings from top to bottom.
    assert torch.allclose(position - 30, 6 * torch.sin(3 * math.pi * row), atol=1e-2)


def test_chain_of_one_is_jpeg() -> None:
    pixels = pictures(2, 32, 40)
    once = corruptions.jpeg_compression(pixels, 60, generators=NONE)
    assert torch.equal(transformations.jpeg_chain(pixels, (60,), generators=NONE), once)
    assert not torch.equal(transformations.jpeg_chain(pixels, (60, 30), generators=NONE), once)


def test_grids_hold_the_unmoved_picture_and_nothing_twice() -> None:
    pixels = pictures(1, 32, 32)
    assert {k: len(v) for k, v in GRIDS.items()} == {"rotations": 11, "translations": 25, "poses": 275}
    for name, grid in GRIDS.items():
        assert len(set(grid)) == len(grid)
        if name != "poses":
            seen = list(render_grid(pixels, name))
            assert sum(torch.equal(s, pixels) for s in seen) == 1


def test_published_strengths_differ_by_table() -> None:
    for name in SUITES["corruptions-19"]:
        strengths = SHIFTS[name].strengths
        assert strengths["cifar-c"] != strengths["imagenet-c"]
        assert all(len(s) == 5 for s in strengths.values())
    assert (len(SUITES["corruptions-15"]), len(SUITES["corruptions-19"]), len(SUITES["default"])) == (15, 19, 15)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_each_table_has_the_strength_it_publishes(table: str, severity: int) -> None:
    """On flat grey, closed forms of what an image goes through, from render to 8-bit pixels."""
    level = 100
    pixels = torch.full((8, 3, 64, 64), level, dtype=torch.uint8)
    pixels += torch.arange(8, dtype=torch.uint8)[:, None, None, None] // 7  # not all alike, so other draws
    x = level / 255

    def spread(name: str) -> float:
        return render(pixels, name, severity, table=table, seed=0).float().div(255).std().item()

    (sigma,), (photons,), (amount,), (speckle,) = (
        SHIFTS[n].strengths[table][severity - 1] or ()
        for n in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
    )
    if sigma < 0.15:  # else black and white cut the tails off
        # 98,304 samples and rounding to 255 levels: within 2 %.
        assert spread("gaussian_noise") == pytest.approx(sigma, rel=0.02)
    if photons > 20:
        assert spread("shot_noise") == pytest.approx(math.sqrt(x / photons), rel=0.02)
    if speckle < 0.3:
        assert spread("speckle_noise") == pytest.approx(x * speckle, rel=0.02)
    hit = render(pixels, "impulse_noise", severity, table=table, seed=0)
    # A fraction p of 98,304 samples has a standard error of at most 0.0016.
    assert ((hit == 0) | (hit == 255)).float().mean().item() == pytest.approx(amount, abs=0.006)
    (offset,), (factor,) = (SHIFTS[n].strengths[table][severity - 1] or () for n in ("brightness", "contrast"))
    assert (render(pixels, "brightness", severity, table=table, seed=0)[0].float().mean().item() - level) / 255 == (
        pytest.approx(offset, abs=0.002)  # rounding to 255 levels
    )
    halves = pixels.clone()
    halves[..., 32:] = 200
    low = render(halves, "contrast", severity, table=table, seed=0).float()
    assert (low[..., 40] - low[..., 20]).mean().item() / 100 == pytest.approx(factor, abs=0.02)
    point = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    point[..., 32, 32] = 255
    blurred = corruptions.gaussian_blur(
        to_unit(point), *SHIFTS["gaussian_blur"].strengths[table][severity - 1], generators=NONE
    )
    (wanted,) = SHIFTS["gaussian_blur"].strengths[table][severity - 1] or ()
    # The peak of a Gaussian; sampled at less than a pixel it is too coarse for that.
    if wanted >= 1:
        assert blurred.max().item() == pytest.approx(1 / (2 * math.pi * wanted**2), rel=0.02)
