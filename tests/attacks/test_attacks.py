"""Attacks on a half-space, whose distance to the border is known exactly."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from qrobust.attacks.base import Attack
from qrobust.attacks.hop_skip_jump import hop_skip_jump
from qrobust.attacks.losses import cross_entropy, dlr, margin
from qrobust.attacks.noise import random_noise, worst_of
from qrobust.attacks.norms import Ball, L2Ball, LinfBall
from qrobust.attacks.pgd import apgd, fgsm, pgd
from qrobust.attacks.queries import is_right, margins
from qrobust.attacks.square import _bump, square
from qrobust.classifier import Classifier
from qrobust.errors import InputError

N = 8
WEIGHT = torch.randn((3, 4, 4), generator=torch.Generator().manual_seed(0))
BUMP = _bump(3).expand(3, 3, 3)  # a plane along the shape that Square moves in L2, alone within its reach
LABELS = torch.zeros(N, dtype=torch.long)
ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=20),
    "apgd": partial(apgd, steps=20),
    "apgd_dlr": partial(apgd, steps=20, loss=dlr),
    "square": partial(square, queries=1500),
    "hop_skip_jump": partial(hop_skip_jump, queries=8000),
}
SHORT = ATTACKS | {
    "square": partial(square, queries=100),
    "hop_skip_jump": partial(hop_skip_jump, queries=500),
    "random_noise": random_noise,
}
SPACES = [(LinfBall, 0.02), (L2Ball, 0.2)]


def half_space(weight: torch.Tensor = WEIGHT) -> Classifier:
    """Class 0 on one side of a plane through gray, class 1 on the other."""

    def classify(images: torch.Tensor) -> torch.Tensor:
        side = ((images - 0.5) * weight).flatten(1).sum(1)
        return torch.stack([side, -side], 1)

    return classify


def inputs(make: type[Ball], distance: float, weight: torch.Tensor = WEIGHT) -> torch.Tensor:
    """Images of class 0 at a known distance from the plane; far from black and white."""
    dual = float(weight.abs().sum()) if make is LinfBall else float(weight.norm())
    offset = distance * dual / float((weight**2).sum())
    return (0.5 + offset * weight).expand(N, *weight.shape).contiguous()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> torch.nn.Module:
    """Four classes, two convolutions: logits curved enough for attacks to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 4),
        )


def photos(model: Classifier, n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand((n, 3, 8, 8), generator=seeded(9))
    return images, model(images).argmax(1)


@pytest.mark.parametrize(("make", "distance"), SPACES)
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("factor", "left"), [(1.05, 0.0), (0.95, 1.0)])
def test_budget_decides_on_a_half_space(
    name: str, make: type[Ball], distance: float, factor: float, left: float
) -> None:
    weight = BUMP if name == "square" and make is L2Ball else WEIGHT
    model, images, ball = half_space(weight), inputs(make, distance, weight), make(factor * distance)
    adversarial = ATTACKS[name](model, images, LABELS, ball=ball, generator=seeded())
    assert float(is_right(model, adversarial, LABELS).float().mean()) == left
    assert (ball.length(adversarial - images) <= ball.epsilon + 1e-6).all()  # float32 rounding of image + change


@pytest.mark.parametrize(("make", "epsilon"), [(LinfBall, 0.1), (L2Ball, 1.0)])
@pytest.mark.parametrize("name", SHORT)
def test_budget_and_box_hold_near_black_and_white(name: str, make: type[Ball], epsilon: float) -> None:
    model = network()
    images = torch.rand((6, 3, 8, 8), generator=seeded(1)).round()
    labels, ball = model(images).argmax(1), make(epsilon)
    attack = SHORT[name]
    adversarial = attack(model, images, labels, ball=ball, generator=seeded())
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (ball.length(adversarial - images) <= epsilon + 1e-6).all()  # float32 rounding of image + change
    assert not adversarial.requires_grad


def test_square_in_l2_needs_at_most_twice_the_distance_on_a_random_plane() -> None:
    model, images = half_space(), inputs(L2Ball, 0.2)
    adversarial = square(model, images, LABELS, ball=L2Ball(0.4), generator=seeded(), queries=1500)
    # Sums of bumps reach a cosine of a half with any normal, not one: the paper's search is coarse in L2.
    assert not is_right(model, adversarial, LABELS).any()


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("ball", [LinfBall(0), L2Ball(0)])
def test_epsilon_zero_changes_nothing(name: str, ball: Ball) -> None:
    model = network()
    images, labels = photos(model, 4)
    attack = SHORT[name]
    assert torch.equal(attack(model, images, labels, ball=ball, generator=seeded()), images)


@pytest.mark.parametrize("name", SHORT)
def test_equal_generators_give_equal_images_whatever_the_batch(name: str) -> None:
    model = half_space()
    images = inputs(LinfBall, 0.02)
    attack = SHORT[name]

    def run(seed: int, batch_size: int) -> torch.Tensor:
        whole = partial(attack, batch_size=batch_size)
        return whole(model, images, LABELS, ball=LinfBall(0.03), generator=seeded(seed))

    first = run(5, 8)
    assert torch.equal(first, run(5, 8))
    assert torch.equal(first, run(5, 3))
    if name not in ("fgsm", "pgd", "apgd", "apgd_dlr"):  # those end in the one best corner from anywhere
        assert not torch.equal(first, run(6, 8))


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "hop_skip_jump", "random_noise"])
def test_a_misclassified_image_stays_so(name: str) -> None:
    model = network()
    images, labels = photos(model)
    attack = SHORT[name]
    wrong = (labels + 1) % 4
    adversarial = attack(model, images[:4], wrong[:4], ball=LinfBall(1e-4), generator=seeded())
    assert not is_right(model, adversarial, wrong[:4]).any()


@pytest.mark.parametrize("attack", [partial(pgd, steps=5), partial(apgd, steps=5)])
def test_restarts_never_lose_what_was_found(attack: Attack) -> None:
    model = network()
    images, labels = photos(model)
    found = [
        margins(
            model, partial(attack, restarts=r)(model, images, labels, ball=LinfBall(0.02), generator=seeded()), labels
        )
        for r in (1, 3)
    ]
    assert (found[1] >= found[0]).all()
    assert (found[0] >= margins(model, images, labels)).all()


def test_the_best_step_is_kept_when_the_last_is_worse() -> None:
    model, images = half_space(), inputs(LinfBall, 0.02)

    def bent(x: torch.Tensor) -> torch.Tensor:  # turning back beyond a quarter of the budget
        side = model(x)[:, 0]
        return torch.stack([(side - border).abs(), torch.zeros_like(side) + 1e-3], 1)

    border = 0.8 * model(images)[0, 0]
    for attack in (partial(pgd, steps=7, step_size=0.02), partial(apgd, steps=20)):
        adversarial = attack(bent, images, LABELS, ball=LinfBall(0.02), generator=seeded())
        assert (margins(bent, adversarial, LABELS) >= margins(bent, images, LABELS)).all()


def test_apgd_finds_more_than_fgsm_on_a_network() -> None:
    model = network()
    images, labels = photos(model)
    ball = LinfBall(0.05)
    one, many = (
        margins(model, attack(model, images, labels, ball=ball, generator=seeded()), labels)
        for attack in (fgsm, partial(apgd, steps=30, loss=dlr))
    )
    assert (many >= one - 1e-4).float().mean() > 0.9  # DLR is not the margin: a few images may end lower
    assert many.mean() > one.mean()


def test_losses_against_their_definitions() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [1.0, 5.0, 2.0, 4.0]])
    labels = torch.tensor([0, 3])
    assert torch.equal(margin(logits, labels), torch.tensor([-1.0, 1.0]))
    assert torch.allclose(dlr(logits, labels), torch.tensor([-1 / 3, 1 / 3]))
    assert torch.allclose(dlr(7 * logits + 3, labels), dlr(logits, labels))  # scale and offset do not matter
    assert torch.allclose(cross_entropy(logits, labels), logits.logsumexp(1) - logits[[0, 1], labels])
    assert torch.equal(dlr(logits[:, :2], torch.tensor([0, 1])), margin(logits[:, :2], torch.tensor([0, 1])))


def test_worst_of_chooses_per_image() -> None:
    model = half_space()
    near, far = inputs(LinfBall, 0.01), inputs(LinfBall, 0.03)
    first = torch.cat([near[:4], far[4:]])
    second = torch.cat([far[:4], near[4:]])
    assert torch.equal(worst_of(model, iter([first, second]), LABELS, batch_size=3), near)
    with pytest.raises(InputError, match="variants"):
        worst_of(model, [], LABELS)


@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_noise_has_the_full_length_and_more_tries_are_no_weaker(make: type[Ball]) -> None:
    model, images = half_space(), inputs(make, 0.02)
    once, often = (random_noise(model, images, LABELS, ball=make(0.02), generator=seeded(), tries=k) for k in (1, 20))
    assert torch.allclose(make(0.02).length(once - images), torch.tensor(0.02), atol=1e-6)  # float32 rounding
    assert (margins(model, often, LABELS) >= margins(model, once, LABELS)).all()


@pytest.mark.parametrize("name", ["square", "hop_skip_jump", "random_noise"])
def test_black_box_attacks_need_no_gradient(name: str) -> None:
    model = network()
    images, labels = photos(model, 6)

    def session(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(x).detach().numpy())

    attack = SHORT[name]
    assert attack(session, images, labels, ball=LinfBall(0.1), generator=seeded()).shape == images.shape


def test_hop_skip_jump_sees_predictions_only() -> None:
    model, images = half_space(), inputs(LinfBall, 0.02)

    def predictions(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(model(x).argmax(1), 2).float()

    a, b = (
        hop_skip_jump(m, images, LABELS, ball=LinfBall(0.022), generator=seeded(), queries=8000)
        for m in (model, predictions)
    )
    assert torch.equal(a, b)
    assert not is_right(model, a, LABELS).any()


@pytest.mark.parametrize(("make", "distance"), SPACES)
@pytest.mark.parametrize("queries", [1, 2, 40, 65, 200, 333])
def test_hop_skip_jump_keeps_its_query_budget(make: type[Ball], distance: float, queries: int) -> None:
    model, images = half_space(), inputs(make, distance)
    asked = 0

    def counting(x: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(x)
        return model(x)

    ball = make(0.5 * distance)  # out of reach, so that every query is spent
    adversarial = hop_skip_jump(counting, images, LABELS, ball=ball, generator=seeded(), queries=queries)
    assert N * (queries - 1) <= asked <= N * queries  # one may be left that buys no direction
    assert torch.equal(adversarial, images)


def test_hop_skip_jump_returns_the_image_where_nothing_fools() -> None:
    images = inputs(LinfBall, 0.02)

    def stubborn(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    assert torch.equal(hop_skip_jump(stubborn, images, LABELS, ball=LinfBall(1), generator=seeded()), images)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_a_budget_is_a_finite_number_from_zero(make: type[Ball], epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon: expected a finite number >= 0"):
        make(epsilon)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd"])
def test_a_classifier_without_gradient_is_refused(name: str) -> None:
    model = half_space()
    with pytest.raises(InputError, match="no gradient"):
        ATTACKS[name](
            lambda x: model(x).detach(), inputs(LinfBall, 0.02), LABELS, ball=LinfBall(0.1), generator=seeded()
        )


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (partial(pgd, steps=0), "steps"),
        (partial(pgd, restarts=0), "restarts"),
        (partial(apgd, steps=0), "steps"),
        (partial(square, queries=0), "queries"),
        (partial(hop_skip_jump, queries=0), "queries"),
        (partial(random_noise, tries=0), "tries"),
        (partial(fgsm, batch_size=0), "batch_size"),
    ],
)
def test_counts_start_at_one(attack: Attack, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: expected at least 1, got 0"):
        attack(half_space(), inputs(LinfBall, 0.02), LABELS, ball=LinfBall(0.1), generator=seeded())


@pytest.mark.parametrize("name", SHORT)
def test_unfit_images_labels_and_logits_are_named(name: str) -> None:
    attack, images = SHORT[name], inputs(LinfBall, 0.02)
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan
    for bad_images, labels, model, match in [
        (images + 1, LABELS, half_space(), "images: expected values in"),
        (broken, LABELS, half_space(), "images: expected values in"),
        ((255 * images).byte(), LABELS, half_space(), "images: expected float32"),
        (images[0], LABELS, half_space(), "images: expected float32"),
        (images, LABELS[:-1], half_space(), "labels: expected 8 integers"),
        (images, LABELS + 2, half_space(), "labels: expected 0 to 1, got 2 to 2"),
        (images, LABELS, lambda x: half_space()(x) * torch.nan, "classifier: expected finite logits"),
        (images, LABELS, lambda x: half_space()(x)[:, 0], "classifier: expected finite logits"),
    ]:
        with pytest.raises(InputError, match=match):
            attack(model, bad_images, labels, ball=LinfBall(0.1), generator=seeded())


@pytest.mark.parametrize("name", SHORT)
def test_no_images_give_no_images(name: str) -> None:
    attack = SHORT[name]
    none = attack(half_space(), torch.zeros(0, 3, 4, 4), LABELS[:0], ball=LinfBall(0.1), generator=seeded())
    assert none.shape == (0, 3, 4, 4)
