"""What a run was asked to do: sections of choices, each beside the algorithm that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from qrobust.choices import Section, choice, option_of
from qrobust.compensation.config import CalibratorConfig
from qrobust.errors import InputError
from qrobust.evaluation.attack_config import AttackConfig
from qrobust.evaluation.config import EvaluationConfig
from qrobust.preprocessing import PreprocessingConfig
from qrobust.quantization.config import QATConfig, QuantizationConfig

DEFAULT_SEVERITIES = (3, 5)
# So that seeds of steps, which are made of it, have 64 bits.
MOST_SEED = 2**32 - 1
# More images than any data set has. Like the other upper bounds it is no advice: beyond it memory runs out.
MOST_IMAGES = 10**9
MOST_THREADS = 512
# Entries of a `config.json` that versions before 0.2 called otherwise.
RENAMED = {
    "scene_names": "scenarios",
    "scene_images": "target_images",
    "scene_alone": "target_images_alone",
    "association_weight": "distillation_weight",
    "favour": "hard_shift_share",
    "polish": "evolution_steps",
}


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which classifier.

    Attributes:
        spec: `torchvision:NAME`, `path/to/file.py:FACTORY`, or a built-in name.
        weights: file of a state dict, or `FILE:KEY`.
        pretrained: whether torchvision fetches its own weights.
    """

    spec: str = choice("", option="model")
    weights: str | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images.

    Attributes:
        spec: `imagefolder:DIR`, `list:FILE`, `npz:FILE`, `torchvision:NAME` or `digits`.
        root: where torchvision data sets lie.
        class_names: file with one class name per line, in index order.
        skip_bad_images: leave out files that cannot be decoded.
        calibration_images: images that quantization ranges are observed on; None: as many as suit the data.
        train_images: keep only so many training images; None: all.
        test_images: keep only so many test images; None: all.
    """

    spec: str = choice("", option="data")
    root: str | None = choice(None, option="data_root")
    class_names: str | None = None
    skip_bad_images: bool = False
    calibration_images: int | None = choice(None, at_least=1, at_most=MOST_IMAGES)
    train_images: int | None = choice(None, at_least=1, at_most=MOST_IMAGES)
    test_images: int | None = choice(None, at_least=1, at_most=MOST_IMAGES)


@dataclass(frozen=True)
class ShiftConfig(Section):
    """Which shifts are measured and trained on.

    Attributes:
        names: shifts and suites, `FILE.py:FUNCTION`, `stored:DIR`.
        severities: 1 to 5.
        severity_table: what severities mean: by image size, or one of the two.
        hold_out: shifts that are measured but never trained on.
        scenarios: named sets of shifts that `names` was taken from.
        target_images: `imagefolder:DIR`, real images of the new surroundings.
        target_images_alone: whether compensation learns from those images alone.
    """

    names: tuple[str, ...] = choice((), option="shifts")
    severities: tuple[int, ...] = choice(DEFAULT_SEVERITIES, at_least=1, at_most=5)
    severity_table: str = choice("auto", one_of=("auto", "cifar-c", "imagenet-c"))
    hold_out: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    target_images: str | None = None
    target_images_alone: bool = True

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if not self.severities:
            yield "severities: expected at least one of 1 to 5, got none"
        if isinstance(self.target_images, str):
            if not self.target_images.startswith("imagefolder:"):
                yield f"target_images: expected real images as imagefolder:DIR, got {self.target_images!r}"
            elif not self.target_images.removeprefix("imagefolder:").strip():
                yield f"target_images: expected a folder after imagefolder:, got {self.target_images!r}"


@dataclass(frozen=True)
class RunConfig(Section):
    """Every choice of a run; see `qrobust run --help-all` for what each means.

    `code` is no choice: the SHA-256 of every user's file that ran for it, see `qrobust.user_code.code_of`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    qat: QATConfig = field(default_factory=QATConfig)
    shifts: ShiftConfig = field(default_factory=ShiftConfig)
    calibrator: CalibratorConfig = field(default_factory=CalibratorConfig)
    attacks: AttackConfig = field(default_factory=AttackConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = choice(0, at_least=0, at_most=MOST_SEED)
    threads: int = choice(1, at_least=1, at_most=MOST_THREADS)
    code: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, by option name."""
        entries: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Section):
                entries |= {option_of(inner): getattr(value, inner.name) for inner in fields(value)}
            else:
                entries[entry.name] = value
        return entries

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> RunConfig:
        """A configuration from choices by option name; those not given have their defaults.

        Raises:
            InputError: names every mistake at once.
        """
        left, given, mistakes = dict(options), {}, []
        for entry in fields(cls):
            kind = SECTIONS.get(entry.name)
            if kind is None:
                if entry.name in left:
                    given[entry.name] = left.pop(entry.name)
                continue
            names = {option_of(inner): inner.name for inner in fields(kind)}
            chosen = {names[option]: left.pop(option) for option in list(left) if option in names}
            try:
                given[entry.name] = kind(**chosen)
            except InputError as error:
                mistakes.append(str(error))
        if left:
            mistakes.insert(0, f"config: unknown entries {sorted(left)}")
        try:
            config = cls(**given)
        except InputError as error:
            mistakes.append(str(error))
        if mistakes:
            raise InputError("; ".join(mistakes))
        return config

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """The inverse of `as_json`; reads the entries of older versions, too.

        Raises:
            InputError: entries are unknown, of another type than they should be, or make no sense.
        """
        named = {RENAMED.get(key, key): value for key, value in data.items()}
        code = data.get("code", {})
        if not isinstance(code, dict) or not all(isinstance(found, dict) for found in code.values()):
            raise InputError(f"config: code: expected hashes by file, got {code!r}")
        return cls.from_options({k: tuple(v) if isinstance(v, list) else v for k, v in named.items()})


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "preprocessing": PreprocessingConfig,
    "quantization": QuantizationConfig,
    "qat": QATConfig,
    "shifts": ShiftConfig,
    "calibrator": CalibratorConfig,
    "attacks": AttackConfig,
    "evaluation": EvaluationConfig,
}
