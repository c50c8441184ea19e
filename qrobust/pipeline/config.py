"""What a run was asked to do: one frozen dataclass that refuses nonsense, all of it at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackChoices

DEFAULT_SEVERITIES = (3, 5)
# So that seeds of steps, which are made of it, have 64 bits.
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class RunConfig:
    """Every choice of a run; see `qrobust run --help` for what each means."""

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
    target: Literal["x86-vnni", "x86-avx2", "arm64"] = "x86-vnni"
    bits: Literal["w8a8", "w6a8", "w4a8", "w4a4"] = "w8a8"
    edges: Literal["8bit", "same", "float"] = "8bit"
    layer_bits: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    ptq: Literal["default", "auto"] = "default"
    observer: Literal["min-max", "moving-average", "percentile", "histogram", "mse"] = "mse"
    equalize: bool = False
    bias_correction: bool = False
    rounding: Literal["nearest", "adaround"] = "nearest"
    storage: Literal["int8", "int4"] = "int8"
    qat_epochs: float = 0.0
    qat_learning_rate: float = 1e-4
    qat_ranges: Literal["learned", "frozen"] = "learned"
    qat_distillation: float = 0.9
    qat_shifts: bool = False
    shifts: tuple[str, ...] = ()
    severities: tuple[int, ...] = DEFAULT_SEVERITIES
    severity_table: Literal["auto", "cifar-c", "imagenet-c"] = "auto"
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
    attacks: Literal["none", "quick", "full"] = "quick"
    norms: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = AttackChoices.epsilons
    l2_epsilons: tuple[float, ...] = ()
    attack_images: int = AttackChoices.images
    attack_steps: int = AttackChoices.steps
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        at_least = {
            "calibration_images": 1,
            "train_images": 1,
            "test_images": 1,
            "steps": 5,
            "few_shot": 0,
            "polish": 0,
            "batch_size": 16,
            "seed": 0,
            "threads": 1,
            "image_size": 8,
        }
        mistakes = [
            f"{name}: expected at least {least}, got {getattr(self, name)}"
            for name, least in at_least.items()
            if getattr(self, name) is not None and getattr(self, name) < least
        ]
        if self.seed > MOST_SEED:
            mistakes.append(f"seed: expected at most {MOST_SEED}, got {self.seed}")
        if not 0 < self.mac_budget <= 1:
            mistakes.append(f"mac_budget: expected a fraction above 0 and at most 1, got {self.mac_budget}")
        if not 0 <= self.favour <= 1:
            mistakes.append(f"favour: expected a share from 0 to 1, got {self.favour}")
        if self.scene_images is not None and not self.scene_images.removeprefix("imagefolder:").strip():
            mistakes.append(f"scene_images: expected a folder after imagefolder:, got {self.scene_images!r}")
        elif self.scene_images is not None and not self.scene_images.startswith("imagefolder:"):
            mistakes.append(f"scene_images: expected real images as imagefolder:DIR, got {self.scene_images!r}")
        if self.latency_budget and not 1 < self.latency_budget < float("inf"):
            mistakes.append(f"latency_budget: expected a factor above 1, or 0 for none, got {self.latency_budget}")
        if not 0 <= self.clean_budget <= 100:
            mistakes.append(f"clean_budget: expected points from 0 to 100, got {self.clean_budget}")
        if not 0 < self.learning_rate <= 1:
            mistakes.append(f"learning_rate: expected a number in (0, 1], got {self.learning_rate}")
        if not 0 < self.qat_learning_rate <= 1:
            mistakes.append(f"qat_learning_rate: expected a number in (0, 1], got {self.qat_learning_rate}")
        if not 0 <= self.qat_distillation <= 1:
            mistakes.append(f"qat_distillation: expected a weight from 0 to 1, got {self.qat_distillation}")
        choices = {
            "ptq": ("default", "auto"),
            "storage": ("int8", "int4"),
            "qat_ranges": ("learned", "frozen"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                mistakes.append(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("qat_epochs", "association_weight", "reverse_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                mistakes.append(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")
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
        for entry in fields(cls):
            value, kind = data.get(entry.name, entry.default), type(entry.default)
            if kind in (bool, tuple) and not isinstance(value, (kind, list) if kind is tuple else kind):
                raise InputError(
                    f"config: {entry.name}: expected {'a list' if kind is tuple else 'true or false'}, got {value!r}"
                )
        choices: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return cls(**choices)
        except (TypeError, AttributeError) as error:  # of a comparison with what is no number, or no text
            raise InputError(f"config: an entry is of the wrong type ({error})") from error
