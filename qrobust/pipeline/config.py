"""What a run was asked to do: one frozen dataclass that refuses nonsense, all of it at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackChoices

DEFAULT_SEVERITIES = (3, 5)
# So that seeds of steps, which are made of it, have 64 bits.
MOST_SEED = 2**32 - 1
# More images than any data set has.
MOST_IMAGES = 10**9
# Smallest and largest value of a choice, whichever configuration holds it. The upper ones are no advice: beyond
# them a machine runs out of memory or time.
BOUNDS: dict[str, tuple[float, float]] = {
    "image_size": (8, 4096),
    "calibration_images": (1, MOST_IMAGES),
    "train_images": (1, MOST_IMAGES),
    "test_images": (1, MOST_IMAGES),
    "attack_images": (0, MOST_IMAGES),
    "few_shot": (0, MOST_IMAGES),
    "attack_steps": (1, 10**6),
    "steps": (5, 10**8),
    "polish": (0, 10**6),
    "batch_size": (16, 2**16),
    "qat_epochs": (0, 10**4),
    "association_weight": (0, 10**6),
    "reverse_weight": (0, 10**6),
    "latency_budget": (0, 10**3),
    "favour": (0, 1),
    "qat_distillation": (0, 1),
    "budget": (1, 10**8),
    "seed": (0, MOST_SEED),
    "threads": (1, 512),
}
# Types of entries of `config.json`, as a message says them.
KINDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


def out_of_bounds(choices: object) -> list[str]:
    """A sentence for each choice outside `BOUNDS`; NaN is outside of all."""
    found = []
    for name, (least, most) in BOUNDS.items():
        value = getattr(choices, name, None)
        if value is not None and not least <= value <= most:
            bound = f"at most {most}" if value > most else f"at least {least}"
            found.append(f"{name}: expected {bound}, got {value}")
    return found


def blanks(choices: Any) -> list[str]:
    """A sentence for each entry of a dataclass that is, or holds, an empty string, which never means "none"."""
    found = {entry.name: getattr(choices, entry.name) for entry in fields(choices)}
    return [
        f"{name}: expected a value, got an empty string"
        for name, value in found.items()
        if any(isinstance(v, str) and not v.strip() for v in (value if isinstance(value, tuple) else (value,)))
    ]


@dataclass(frozen=True)
class RunConfig:
    """Every choice of a run; see `qrobust run --help` for what each means.

    `code` is no choice: the SHA-256 of every user's file that ran for it, see `qrobust.user_code.code_of`.
    """

    model: str
    data: str
    weights: str | None = None
    pretrained: bool = False
    normalization: str | None = None
    data_root: str | None = None
    class_names: str | None = None
    skip_bad_images: bool = False
    image_size: int | None = None
    calibration_images: int = 512
    train_images: int | None = None
    test_images: int | None = None
    target: str = "x86-vnni"
    bits: str = "w8a8"
    edges: str = "8bit"
    layer_bits: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    ptq: str = "default"
    observer: str = "mse"
    equalize: bool = False
    bias_correction: bool = False
    rounding: str = "nearest"
    storage: str = "int8"
    qat_epochs: float = 0.0
    qat_learning_rate: float = 1e-4
    qat_ranges: str = "learned"
    qat_distillation: float = 0.9
    qat_shifts: bool = False
    shifts: tuple[str, ...] = ()
    severities: tuple[int, ...] = DEFAULT_SEVERITIES
    severity_table: str = "auto"
    hold_out: tuple[str, ...] = ()
    mac_budget: float = 0.10
    latency_budget: float | None = None
    # One standard error of some thousand images below the half point beyond which the report does not recommend.
    clean_budget: float = 0.3
    branches: tuple[str, ...] = ()
    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 2e-3
    use_labels: bool = True
    favour: float = 0.0
    polish: int = 0
    few_shot: int | None = None
    scene_names: tuple[str, ...] = ()
    scene_images: str | None = None
    scene_alone: bool = True
    association_weight: float = 1.0
    reverse_weight: float = 0.0
    attacks: str = "quick"
    norms: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = AttackChoices.epsilons
    l2_epsilons: tuple[float, ...] = ()
    attack_images: int = AttackChoices.images
    attack_steps: int = AttackChoices.steps
    seed: int = 0
    threads: int = 1
    code: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mistakes = blanks(self) + out_of_bounds(self)
        if not 0 < self.mac_budget <= 1:
            mistakes.append(f"mac_budget: expected a fraction above 0 and at most 1, got {self.mac_budget}")
        if self.scene_images is not None and not self.scene_images.removeprefix("imagefolder:").strip():
            mistakes.append(f"scene: expected a folder after imagefolder:, got {self.scene_images!r}")
        elif self.scene_images is not None and not self.scene_images.startswith("imagefolder:"):
            mistakes.append(f"scene: expected real images as imagefolder:DIR, got {self.scene_images!r}")
        if self.latency_budget and not self.latency_budget > 1:
            mistakes.append(f"latency_budget: expected a factor above 1, or 0 for none, got {self.latency_budget}")
        if not 0 <= self.clean_budget <= 100:
            mistakes.append(f"clean_budget: expected points from 0 to 100, got {self.clean_budget}")
        if not 0 < self.learning_rate <= 1:
            mistakes.append(f"learning_rate: expected a number in (0, 1], got {self.learning_rate}")
        if not 0 < self.qat_learning_rate <= 1:
            mistakes.append(f"qat_learning_rate: expected a number in (0, 1], got {self.qat_learning_rate}")
        choices = {
            "ptq": ("default", "auto"),
            "storage": ("int8", "int4"),
            "qat_ranges": ("learned", "frozen"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                mistakes.append(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        words = {self.bits, *(part.rpartition("=")[2] for part in self.layer_bits)}
        if not any(word.startswith(("w4", "w6")) for word in words) and self.rounding != "nearest":
            mistakes.append(f"rounding: {self.rounding} is for weights of fewer than 8 bits, bits are {self.bits}")
        if not any(word.startswith("w4") for word in words) and self.storage == "int4":
            mistakes.append(f"storage: int4 is for weights of 4 bits, bits are {self.bits}")
        mistakes += [
            f"{entry.name}: nothing is trained without qat_epochs"
            for entry in fields(self)
            if entry.name.startswith("qat_") and getattr(self, entry.name) != entry.default and not self.qat_epochs
        ]
        mistakes += self.attack_choices.mistakes()
        if not self.severities:
            mistakes.append("severities: expected at least one of 1 to 5, got none")
        mistakes += [
            f"severity: expected an integer from 1 to 5, got {s}" for s in self.severities if s not in range(1, 6)
        ]
        if mistakes:
            raise InputError("; ".join(mistakes))

    @property
    def attack_choices(self) -> AttackChoices:
        """What is tried against the graphs."""
        return AttackChoices(
            self.attacks, self.norms, self.epsilons, self.l2_epsilons, self.attack_images, self.attack_steps
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """The inverse of `as_json`.

        Raises:
            InputError: entries are unknown or of another type than they should be.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"config: unknown entries {unknown}")
        code = data.get("code", {})
        if not isinstance(code, dict) or not all(isinstance(found, dict) for found in code.values()):
            raise InputError(f"config: code: expected hashes by file, got {code!r}")
        choices: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for name, kind in get_type_hints(cls).items():
            if name in choices and not _fits(choices[name], kind):
                raise InputError(f"config: {name}: expected {_told(kind)}, got {data[name]!r}")
        return cls(**choices)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type that a field of `RunConfig` has."""
    kinds = get_args(kind)
    if isinstance(value, tuple):
        return bool(kinds) and kinds[-1] is Ellipsis and all(_fits(entry, kinds[0]) for entry in value)
    if kinds:
        return any(_fits(value, one) for one in kinds if one is not Ellipsis) and kinds[-1] is not Ellipsis
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _told(kind: Any) -> str:
    kinds = get_args(kind)
    if kinds and kinds[-1] is Ellipsis:
        return f"a list of {KINDS[kinds[0]].split()[-1]}s"
    return " or ".join(KINDS[one] for one in kinds or (kind,))
