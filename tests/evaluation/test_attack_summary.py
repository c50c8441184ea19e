"""From attacks to figures: whole pixels, transfer, sweeps, the worst case, reliability."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from qrobust.attacks.base import (
    on_pixels,
    sweep,
    to_uint8_inside,
    transfer,
)
from qrobust.attacks.diagnostics import (
    differential_risk,
    reliability_flags,
    worst_case,
    zero_gradient_share,
)
from qrobust.attacks.hop_skip_jump import hop_skip_jump
from qrobust.attacks.noise import random_noise
from qrobust.attacks.norms import Ball, L2Ball, LinfBall
from qrobust.attacks.pgd import apgd, fgsm, pgd
from qrobust.attacks.queries import is_right
from qrobust.attacks.square import square
from qrobust.classifier import Classifier, NormalizedModel
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.errors import InputError
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI

WEIGHT = torch.randn((3, 6, 6), generator=torch.Generator().manual_seed(0))


def smooth(images: torch.Tensor) -> torch.Tensor:
    side = ((images - 0.5) * WEIGHT).flatten(1).sum(1)
    return torch.stack([side, -side], 1)


def masked(images: torch.Tensor) -> torch.Tensor:
    """The same classes, but logits in steps: the gradient is zero almost everywhere."""
    return (20 * smooth(images)).round() / 20


def pixels_and_labels(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(40, 216, (n, 3, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return pixels, smooth(pixels.float() / 255).argmax(1)


def shares(right: Mapping[float, torch.Tensor]) -> dict[float, float]:
    return {epsilon: float(r.float().mean()) for epsilon, r in right.items()}


@pytest.mark.parametrize("epsilon", [0.0, 0.9 / 255, 1 / 255, 2.5 / 255, 8 / 255])
def test_rounding_stays_in_the_linf_ball(epsilon: float) -> None:
    pixels, labels = pixels_and_labels()
    adversarial = pgd(
        smooth,
        pixels.float() / 255,
        labels,
        ball=LinfBall(epsilon),
        steps=3,
        generator=torch.Generator().manual_seed(0),
    )
    change = to_uint8_inside(adversarial, pixels, LinfBall(epsilon)).int() - pixels.int()
    assert change.abs().max() == int(255 * epsilon + 1e-6)  # exact integers: the largest whole step allowed


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.05, 0.25, 1.0])
def test_rounding_stays_in_the_l2_ball_and_is_near(epsilon: float) -> None:
    pixels = torch.full((24, 3, 6, 6), 128, dtype=torch.uint8)  # far from black and white
    images, ball = pixels.float() / 255, L2Ball(epsilon)
    start = ball.start(images, torch.Generator().manual_seed(0))
    rounded = to_uint8_inside(images + start, pixels, ball).double() - pixels.double()
    lengths = rounded.flatten(1).norm(dim=1)
    assert (lengths <= 255 * epsilon + 1e-6).all()  # slack of the rule itself
    assert (rounded - 255 * start.double()).abs().max() < 1 + 1e-4  # down or up, never two steps; float32 input
    nearest = (255 * start.double()).round()
    taken_back = rounded != nearest
    for i in taken_back.flatten(1).any(1).nonzero().flatten():  # as few as needed: one less would be too long
        longest = (2 * rounded[i][taken_back[i]].abs() + 1).max()
        assert lengths[i] ** 2 + longest > (255 * epsilon) ** 2


def test_a_perturbation_of_whole_steps_is_kept() -> None:
    pixels, _ = pixels_and_labels()
    change = torch.randint(-4, 5, pixels.shape, generator=torch.Generator().manual_seed(2))
    moved = (pixels + change).float() / 255
    length = float((change[:1].double() / 255).norm())
    assert torch.equal(to_uint8_inside(moved, pixels, LinfBall(4 / 255)).long(), pixels + change)
    assert torch.equal(to_uint8_inside(moved[:1], pixels[:1], L2Ball(length + 1e-6)).long(), pixels[:1] + change[:1])


def test_black_and_white_stay_in_range() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(54).view(1, 3, 6, 6)
    images = pixels.float() / 255
    for ball in (LinfBall(8 / 255), L2Ball(1.0)):
        noisy = (images + ball.start(images, torch.Generator().manual_seed(0))).clamp(0, 1)
        change = to_uint8_inside(noisy, pixels, ball).double() - pixels.double()
        assert (ball.length(change) <= 255 * ball.epsilon + 1e-6).all()


def test_pixels_that_do_not_fit_are_named() -> None:
    pixels, _ = pixels_and_labels()
    for wrong in (pixels.float(), pixels[:3]):
        with pytest.raises(InputError, match="pixels: expected uint8"):
            to_uint8_inside(pixels.float() / 255, wrong, LinfBall(0.1))


@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_sweep_starts_at_clean_accuracy_and_falls(make: type[Ball]) -> None:
    pixels, labels = pixels_and_labels()
    labels[:5] = 1 - labels[:5]
    scale = 1.0 if make is LinfBall else 10.0
    balls = [make(scale * e / 255) for e in (32, 0, 2, 8)]
    right = sweep(partial(pgd, steps=5), smooth, on_pixels(smooth), pixels, labels, balls=balls, seed=0)
    assert list(right) == sorted(right)
    assert torch.equal(right[0.0], is_right(smooth, pixels.float() / 255, labels))
    fallen = list(shares(right).values())
    assert fallen == sorted(fallen, reverse=True)
    assert fallen[-1] < fallen[0]


def test_transfer_between_equal_classifiers_is_the_white_box() -> None:
    pixels, labels = pixels_and_labels()
    ball = LinfBall(4 / 255)
    white = transfer(fgsm, smooth, smooth, pixels, labels, ball=ball, seed=0)
    assert torch.equal(transfer(fgsm, smooth, lambda x: 2 * smooth(x), pixels, labels, ball=ball, seed=0), white)
    unrelated = torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(8))
    other = transfer(fgsm, lambda x: smooth(x) * 0 + smooth(x * unrelated), smooth, pixels, labels, ball=ball, seed=0)
    assert other.float().mean() > white.float().mean()


def test_worst_case_and_differential_risk_count_images() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert worst_case({"clean": a, "pgd": b}).tolist() == [True, False, False, False]
    assert differential_risk(a, b) == 0.25
    with pytest.raises(InputError, match="right"):
        worst_case({})
    with pytest.raises(InputError, match="right"):
        worst_case({"a": a, "b": b[:2]})


def flags(white_box: Mapping[float, float], **changed: object) -> list[str]:
    arguments: dict[str, object] = {
        "others": {"square": {0.1: 0.5}},
        "noise": {0.1: 0.9},
        "chance": 0.1,
        "zero_gradients": 0.0,
    }
    return reliability_flags("int8", white_box, **(arguments | changed))  # type: ignore[arg-type]  # one dict for all


def test_each_contradiction_has_its_flag() -> None:
    sound = {0.0: 0.9, 0.1: 0.3, 0.2: 0.05}
    assert flags(sound) == []
    for bad, word in [
        (flags(sound, others={"square": {0.1: 0.297}}), "square leaves"),
        (flags(sound, noise={0.1: 0.29}), "random noise leaves"),
        (flags({0.0: 0.2, 0.1: 0.3, 0.2: 0.05}), "less budget"),
        (flags({0.0: 0.9, 0.1: 0.3}), "the largest epsilon"),
        (flags(sound, zero_gradients=0.02), "have no gradient"),
    ]:
        assert len(bad) == 1
        assert bad[0].startswith("UNRELIABLE: int8: ")
        assert word in bad[0]
    assert flags(sound, others={"square": {0.1: 0.2985}}) == []  # within 0.2 points
    with pytest.raises(InputError, match="white_box"):
        flags({})


def test_masked_gradients_are_caught() -> None:
    pixels, labels = pixels_and_labels()
    images = pixels.float() / 255
    balls = [LinfBall(e / 255) for e in (0, 8, 32)]
    gradient = partial(apgd, steps=5)
    found = {}
    for model in (smooth, masked):
        white = shares(sweep(gradient, model, model, pixels, labels, balls=balls, seed=0))
        black = shares(sweep(partial(square, queries=300), model, model, pixels, labels, balls=balls, seed=0))
        noise = shares(sweep(random_noise, model, model, pixels, labels, balls=balls, seed=0))
        blind = zero_gradient_share(model, images, labels)
        found[model] = reliability_flags(
            "net", white, others={"square": black}, noise=noise, chance=0.5, zero_gradients=blind
        )
    assert found[smooth] == []
    assert any("square leaves" in f for f in found[masked])
    assert any("100.0% of the images have no gradient" in f for f in found[masked])
    assert all(f.startswith("UNRELIABLE") for f in found[masked])


def test_share_of_zero_gradients_is_counted_over_batches() -> None:
    pixels, labels = pixels_and_labels()
    images = pixels.float() / 255

    def half_blind(x: torch.Tensor) -> torch.Tensor:
        seen = (x[:, :1, :1, :1] > 0.5).float()
        return smooth(seen * x)

    expected = float((images[:, 0, 0, 0] <= 0.5).float().mean())
    assert zero_gradient_share(half_blind, images, labels, batch_size=5) == pytest.approx(expected)
    with pytest.raises(InputError, match="images: expected at least 1"):
        zero_gradient_share(smooth, images[:0], labels[:0])


@pytest.fixture
def deployed(
    small_model: NormalizedModel, images: torch.Tensor, tmp_path: Path
) -> tuple[Classifier, OnnxClassifier, torch.Tensor, torch.Tensor]:
    """A fake-quantized model, its session, and pixels that the session gets right."""
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    export(fake_quantized, tmp_path / "int8.onnx", 32, {})
    session = OnnxClassifier(tmp_path / "int8.onnx", 1)
    pixels = (255 * images[:8]).round().byte()
    return fake_quantized, session, pixels, session(pixels.float() / 255).argmax(1)


def test_attacks_on_a_real_session(
    deployed: tuple[Classifier, OnnxClassifier, torch.Tensor, torch.Tensor],
) -> None:
    fake_quantized, session, pixels, labels = deployed
    with pytest.raises(InputError, match="no gradient"):
        pgd(session, pixels.float() / 255, labels, ball=LinfBall(0.1), generator=torch.Generator(), steps=1)
    gradient = partial(apgd, steps=10)
    score, decision = partial(square, queries=100), partial(hop_skip_jump, queries=600)
    for ball in (LinfBall(16 / 255), L2Ball(4.0)):
        # Random weights have no margins: at these budgets every attack has to break most images.
        for attack, source in (
            (gradient, fake_quantized),
            (score, on_pixels(session)),
            (decision, on_pixels(session)),
        ):
            right = transfer(attack, source, session, pixels, labels, ball=ball, seed=0)
            assert right.float().mean() <= 0.5


def test_the_example_of_the_page_runs(
    small_model: NormalizedModel, deployed: tuple[Classifier, OnnxClassifier, torch.Tensor, torch.Tensor]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    fake_quantized, session, pixels, labels = deployed
    names = {
        "fake_quantized": fake_quantized,
        "exported": session,
        "pixels": pixels,
        "labels": labels,
        "float_model": small_model,
    }
    exec(page.split("```python")[1].split("```")[0], names)
    assert names["white"][0].all()  # type: ignore[index]  # labels are the session's own
    assert 0 <= names["int8_alone_is_wrong"] <= 1  # type: ignore[operator]  # what the example computes
    assert (names["worst"] <= names["black"][8 / 255]).all()  # type: ignore[index]
    assert isinstance(names["flags"], list)
