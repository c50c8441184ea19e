from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from qrobust.errors import InputError
from qrobust.shifts import corruptions, transformations
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.registry import (
    SHIFTS,
    SUITES,
    TABLES,
    defined_conditions,
    expand,
    find_shift,
    table_for,
)
from qrobust.shifts.rendering import render, render_grid
from qrobust.shifts.rng import Generators

ALL = [(name, s) for name, s in defined_conditions(tuple(SHIFTS), (1, 2, 3, 4, 5), "cifar-c")]


def generators(n: int) -> Generators:
    return Generators(range(n))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", SHIFTS)
def test_render_depends_on_the_image_alone(name: str, table: str, digit_pixels: torch.Tensor) -> None:
    pixels = (digit_pixels * torch.tensor([1.0, 0.6, 0.3])[:, None, None]).to(torch.uint8)
    together = render(pixels, name, 5, table=table, seed=0)
    assert together.shape == pixels.shape
    assert together.dtype == torch.uint8
    alone = torch.cat([render(image[None], name, 5, table=table, seed=0) for image in pixels.flip(0)])
    # Convolution and sampling kernels may round differently for another batch size: one level at most.
    assert (together.int() - alone.flip(0).int()).abs().max() <= 1
    assert not torch.equal(together, pixels)


@pytest.mark.parametrize("name", SHIFTS)
def test_grey_is_the_middle_of_three_equal_channels(name: str, digit_pixels: torch.Tensor) -> None:
    grey = digit_pixels[:3, :1]
    rendered = render(grey, name, 5, table="cifar-c", seed=0)
    assert torch.equal(rendered, render(grey.repeat(1, 3, 1, 1), name, 5, table="cifar-c", seed=0)[:, 1:2])
    assert rendered.is_contiguous()


def test_poses_of_grey_images(digit_pixels: torch.Tensor) -> None:
    posed, grey = (render_grid(digit_pixels[:1, :c], "rotations") for c in (3, 1))
    assert all(torch.equal(one[:, 1:2], other) for one, other in zip(posed, grey, strict=True))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"])
def test_seed_decides_random_shifts(name: str, digit_pixels: torch.Tensor) -> None:
    first, again, other = (render(digit_pixels, name, 5, table="imagenet-c", seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["gaussian_noise", "defocus_blur", "contrast", "rotation", "shear"])
def test_severity_hurts_more_and_more(name: str) -> None:
    pixels = to_uint8(
        torch.nn.functional.interpolate(
            torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=64, mode="bicubic"
        )
    )
    table = "imagenet-c"
    distances = [
        (render(pixels, name, s, table=table, seed=0).float() - pixels.float()).abs().mean() for s in range(1, 6)
    ]
    assert distances == sorted(distances)


def test_noise_has_the_sigma_it_says() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    noise = corruptions.gaussian_noise(images, 0.1, generators=generators(4)) - images
    # 49,152 samples: the standard error of their standard deviation is 0.3 %.
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    photons = corruptions.shot_noise(images, 100, generators=generators(4))
    assert photons.var().item() == pytest.approx(0.5 / 100, rel=0.05)


def test_impulse_amount() -> None:
    hit = corruptions.impulse_noise(torch.full((4, 3, 64, 64), 127, dtype=torch.uint8), 0.2, generators=generators(4))
    assert (hit == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (hit == 255).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_contrast_and_brightness_closed_forms() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    low = corruptions.contrast(images, 0.3, generators=generators(0))
    assert torch.allclose(low.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(low.std((2, 3)), 0.3 * images.std((2, 3)), atol=1e-6)
    bright = corruptions.brightness(images, 0.1, generators=generators(0))
    assert torch.allclose(bright.amax(1), (images.amax(1) + 0.1).clamp(max=1), atol=1e-6)
    # Hue and saturation stay: channels keep their ratios.
    ratio = bright / images.clamp(min=1e-3)
    assert torch.allclose(ratio[:, 0], ratio[:, 1], atol=1e-2)


def test_blur_keeps_flat_images_and_total_weight() -> None:
    flat = torch.full((2, 3, 32, 32), 0.4)
    for blurred in (
        corruptions.defocus_blur(flat, 4, 0.5, generators=generators(0)),
        corruptions.motion_blur(flat, 20, 15, generators=generators(2)),
    ):
        assert torch.allclose(blurred, flat, atol=1e-5)


def test_plasma_is_normalised_and_rougher_with_less_decay() -> None:
    smooth = corruptions.plasma_fractal(32, 3.0, generators=generators(4))
    rough = corruptions.plasma_fractal(32, 1.4, generators=generators(4))
    for heights in (smooth, rough):
        assert torch.equal(heights.amin((1, 2)), torch.zeros(4))
        assert torch.equal(heights.amax((1, 2)), torch.ones(4))
    assert (rough[:, 1:] - rough[:, :-1]).abs().mean() > (smooth[:, 1:] - smooth[:, :-1]).abs().mean()


def test_rotation_agrees_with_pillow() -> None:
    pixels = to_uint8(
        torch.nn.functional.interpolate(
            torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)), size=65, mode="bicubic"
        )
    )
    ours = render(pixels, "rotation", 5, table="cifar-c", seed=0)[0]
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    theirs = torch.from_numpy(np.asarray(image.rotate(30, Image.Resampling.BILINEAR)).copy()).permute(2, 0, 1)
    inner = (slice(None), slice(12, -12), slice(12, -12))
    # Pillow samples bilinearly in fixed point.
    assert (ours[inner].float() - theirs[inner].float()).abs().mean() < 1.0


def test_geometry_closed_forms() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 10, 12] = 1
    moved = transformations.translation(image, 0.25, generators=generators(0))
    assert moved[0, 0, 18, 20] == pytest.approx(1.0, abs=1e-4)
    square = torch.zeros(1, 3, 32, 32)
    square[:, :, 8:24, 8:24] = 1
    small = transformations.scale(square, 0.5, generators=generators(0))
    assert small.sum().item() == pytest.approx(square.sum().item() / 4, rel=0.05)
    leaned = transformations.shear(square, 45, generators=generators(0))
    assert leaned.sum().item() == pytest.approx(square.sum().item(), rel=0.1)
    assert torch.equal(
        transformations.inversion(
            transformations.inversion(image, generators=generators(0)), generators=generators(0)
        ),
        image,
    )


def test_table_suits_the_size() -> None:
    assert (table_for(32), table_for(224)) == ("cifar-c", "imagenet-c")
    assert math.isclose(SHIFTS["gaussian_noise"].strengths["imagenet-c"][4][0], 0.38)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("smog", 1, "cifar-c"), "shift"),
        (("fog", 6, "cifar-c"), "severity"),
        (("fog", 0, "cifar-c"), "severity"),
        (("inversion", 1, "cifar-c"), "severity"),
        (("fog", 1, "imagenet"), "severity_table"),
    ],
)
def test_render_refuses_nonsense(arguments: tuple, named: str, digit_pixels: torch.Tensor) -> None:
    name, severity, table = arguments
    with pytest.raises(InputError, match=named):
        render(digit_pixels, name, severity, table=table, seed=0)


def test_render_refuses_float_images_and_two_channels() -> None:
    with pytest.raises(InputError, match="uint8"):
        render(torch.rand(1, 3, 8, 8), "fog", 1, table="cifar-c", seed=0)
    with pytest.raises(InputError, match=r"\(N, 3, H, W\) or \(N, 1, H, W\), got torch.uint8 \(1, 2, 8, 8\)"):
        render(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), "fog", 1, table="cifar-c", seed=0)


def test_unit_round_trip(digit_pixels: torch.Tensor) -> None:
    assert torch.equal(to_uint8(to_unit(digit_pixels)), digit_pixels)


def test_brightness_agrees_with_an_enhancer_on_gray(digit_pixels: torch.Tensor) -> None:
    # On a gray image, adding to the value is adding to the pixel.
    gray = np.full((8, 8, 3), 100, np.uint8)
    ours = corruptions.brightness(
        torch.from_numpy(gray).permute(2, 0, 1)[None].float() / 255, 0.1, generators=generators(0)
    )
    theirs = np.asarray(ImageEnhance.Brightness(Image.fromarray(gray)).enhance(125.5 / 100))
    assert abs(float(ours[0, 0, 0, 0]) * 255 - float(theirs[0, 0, 0])) <= 1


OWN = {
    "darker": "return images * (1 - strength)",
    "grainy": "return (images + strength * torch.stack([torch.rand(images.shape[1:], generator=g) - 0.5 "
    "for g in generators])).clamp(0, 1)",
    "not_a_number": "return images * float('nan')",
    "smaller": "return images[:, :, 1:]",
    "too_bright": "return images + 1",
    "no_tensor": "return images.tolist()",
    "eight_bit": "return (images * 255).to(torch.uint8)",
    "broken": "raise RuntimeError('no lens')",
}


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    functions = [f"def {name}(images, strength, generators):\n    {body}\n" for name, body in OWN.items()]
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n" + "\n".join(functions) + "\ndarker.strengths = (0, 0.2, 0.4, 0.6, 1)\nnothing = 3\n"
    )
    return path


def test_own_shifts(own_file: Path, digit_pixels: torch.Tensor) -> None:
    arguments = {"table": "cifar-c", "seed": 0}
    assert torch.equal(render(digit_pixels, f"{own_file}:darker", 1, **arguments), digit_pixels)
    assert render(digit_pixels, f"{own_file}:darker", 5, **arguments).max() == 0
    grainy = render(digit_pixels, f"{own_file}:grainy", 5, **arguments)
    alone = torch.cat([render(p[None], f"{own_file}:grainy", 5, **arguments) for p in digit_pixels])
    assert torch.equal(grainy, alone)
    # Where the file lies, and how long its path is, decides nothing; severity does.
    far = own_file.parent / ("deep" * 20) / own_file.name
    far.parent.mkdir()
    far.write_text(own_file.read_text())
    assert torch.equal(render(digit_pixels, f"{far}:grainy", 5, **arguments), grainy)
    flat = torch.full_like(digit_pixels, 128)
    low, high = (render(flat, f"{far}:grainy", s, **arguments).float() - 128 for s in (1, 5))
    assert not torch.allclose(5 * low, high, atol=5)  # other random numbers, not the same ones stronger
    assert expand(("sensor", f"{own_file}:darker")) == (*SUITES["sensor"], f"{own_file}:darker")
    assert len(defined_conditions((f"{own_file}:darker",), (1, 5), "cifar-c")) == 2


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("not_a_number", "NaN"),
        ("smaller", "must return float images"),
        ("too_bright", r"\[0, 1\]"),
        ("no_tensor", "list"),
        ("eight_bit", "uint8"),
        ("broken", "no lens"),
        ("absent", "absent"),
        ("nothing", "expected a function"),
    ],
)
def test_own_shifts_that_are_refused(own_file: Path, name: str, named: str, digit_pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match=named) as error:
        render(digit_pixels, f"{own_file}:{name}", 5, table="cifar-c", seed=0)
    assert "\n" not in str(error.value)


def test_files_of_own_shifts_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        find_shift(f"{tmp_path}/absent.py:fog")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        find_shift(f"{tmp_path}/bad.py:fog")
    (tmp_path / "few.py").write_text("def fog(images, strength, generators): ...\nfog.strengths = (1, 2)")
    with pytest.raises(InputError, match="5 strengths"):
        find_shift(f"{tmp_path}/few.py:fog")
    (tmp_path / "one.py").write_text("def fog(images, strength, generators): ...\nfog.strengths = 5")
    with pytest.raises(InputError, match="5 strengths"):
        find_shift(f"{tmp_path}/one.py:fog")


def test_suites_expand_once() -> None:
    assert expand(()) == SUITES["default"]
    assert expand(("default", "fog")) == SUITES["default"]
    assert set(expand(("all",))) == set(SHIFTS) - {*SUITES["generic"], *SUITES["c-bar"]}
    assert {n for suite in SUITES.values() for n in suite} == set(SHIFTS)
    with pytest.raises(InputError, match="smog"):
        expand(("fog", "smog"))


def test_grids_that_are_refused(digit_pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="grid"):
        next(render_grid(digit_pixels, "spirals"))
    with pytest.raises(InputError, match="uint8"):
        next(render_grid(digit_pixels.float(), "poses"))
