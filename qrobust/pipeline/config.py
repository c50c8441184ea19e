"""What a run was asked to do: sections of choices, each beside the algorithm that it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

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
    "association_weight": "distillation_weight",
    "favour": "hard_shift_share",
    "polish": "evolution_steps",
}
# Entries of versions before 0.2 that `train_on` took the place of; old and new names of real images, and alone.
HELD_OUT = ("hold_out", "scene_alone", "target_images_alone")
REAL = (("images", ""), ("alone", "_alone"))


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which classifier.

    Attributes:
        spec: `torchvision:NAME`, `timm:NAME`, `path/to/file.py:FACTORY`, `FILE.onnx`, or a built-in name.
        weights: file of a state dict, or `FILE:KEY`.
        pretrained: whether torchvision or timm fetches its own weights.
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
    """Which shifts are measured, and which are learned from: two choices.

    Attributes:
        names: shifts and suites that are measured, `FILE.py:FUNCTION`, `stored:DIR`.
        train_on: shifts, suites and scenarios that everything that learns may learn from; none: target images alone.
        scenario_share: of the rendered training images, those under named shifts beside random operations.
        severities: 1 to 5.
        severity_table: what severities mean: by image size, or one of the two.
        scenarios: named sets of shifts that `names` and `train_on` were taken from.
        target_images: `imagefolder:DIR`, real images of the new surroundings, to learn from and to measure.
    """

    names: tuple[str, ...] = choice((), option="shifts")
    severities: tuple[int, ...] = choice(DEFAULT_SEVERITIES, at_least=1, at_most=5)
    severity_table: str = choice("auto", one_of=("auto", "cifar-c", "imagenet-c"))
    train_on: tuple[str, ...] = ("generic",)
    scenario_share: float = choice(0.5, at_least=0, at_most=1)
    scenarios: tuple[str, ...] = ()
    target_images: str | None = None

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if not self.severities:
            yield "severities: expected at least one of 1 to 5, got none"
        if not self.train_on and not self.target_images:
            yield "train_on: expected something to learn from, got none; without any, --target-images DIR is needed"
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
    device: str = "auto"
    code: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Plain data for a JSON file, by option name."""
        entries: dict[str, object] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Section):
                entries |= {option_of(inner): getattr(value, inner.name) for inner in fields(value)}
            else:
                entries[entry.name] = value
        return entries

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RunConfig:
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
            mistakes.insert(0, f"config.json: unknown entries {sorted(left)}")
        try:
            config = cls(**given)
        except InputError as error:
            mistakes.append(str(error))
        if mistakes:
            raise InputError("; ".join(mistakes))
        return config

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> RunConfig:
        """The inverse of `as_json`; reads the entries of older versions, too.

        Raises:
            InputError: entries are unknown, of another type than they should be, or make no sense.
        """
        named = {RENAMED.get(key, key): value for key, value in _with_training_shifts(data).items()}
        code = data.get("code", {})
        if not isinstance(code, dict) or not all(isinstance(found, dict) for found in code.values()):
            raise InputError(f"config.json: code: expected hashes by file, got {code!r}")
        return cls.from_options({k: tuple(v) if isinstance(v, list) else v for k, v in named.items()})


def _are_names(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _with_training_shifts(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries with `train_on`: earlier versions learned from what they measured, less what was held out."""
    rest = {key: value for key, value in data.items() if key not in HELD_OUT}
    if "train_on" in rest or not _are_names(rest.get("shifts")) or not _are_names(data.get("hold_out", ())):
        return rest  # of today, or refused by what checks their types
    real, alone = (data.get(f"scene_{key}", data.get(f"target_images{suffix}")) for key, suffix in REAL)
    if real and alone:
        return {**rest, "train_on": ()}
    train_on = tuple(name for name in rest["shifts"] if not name.startswith("stored:")) or ("default",)
    if held_out := tuple(data.get("hold_out", ())):
        from qrobust.shifts.registry import expand  # only here, for it imports torch, which reports do without

        train_on = tuple(name for name in expand(train_on) if name not in expand(held_out))
    return {**rest, "train_on": train_on}


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
