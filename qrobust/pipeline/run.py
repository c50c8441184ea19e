"""A run's folder, and the objects of a run rebuilt from it.

Everything a later stage needs lies in the folder, apart from the data and (for `file.py:FACTORY`) the
model's code: the configuration, the float weights, the twin's and the calibrator's integers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn

from qrobust.classifier import Compensated, NormalizedModel, count_macs
from qrobust.compensation.calibrator import (
    CALIBRATOR_VERSION,
    Calibrator,
    Correction,
    within_budget,
)
from qrobust.data.loading import open_data
from qrobust.data.scene_images import (
    Scene,
    about_scene,
    folder_of,
    open_scene,
)
from qrobust.data.splits import Data, Split
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.errors import InputError, unknown
from qrobust.evaluation.corruption_sets import StoredCells, open_sets
from qrobust.models.loading import load_model
from qrobust.models.registry import ModelSpec, find_model
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.run_folder import RunFolder, is_run
from qrobust.progress import Reporter
from qrobust.quantization.ptq import (
    Observed,
    Trial,
    build,
    keep_worst_in_float,
    observe,
    restore,
    search,
)
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.sensitivity import (
    Fidelity,
    LayerEffect,
    fidelity,
    logits_on,
)
from qrobust.quantization.target import TARGETS, Target
from qrobust.shifts.filters import to_unit
from qrobust.shifts.registry import (
    SUITES,
    cells,
    expand,
    table_for,
)
from qrobust.storage import read_json, whole

BATCH = 64
# Validation images that `--ptq auto` chooses by, and that the effect of single layers is measured on.
SEARCH_IMAGES, SENSITIVITY_IMAGES = 1000, 256
# Judging by fewer images where they are large: pixels of all of them, and the fewest images that say anything.
JUDGE_PIXELS, FEWEST_JUDGES = 2**24, 16


@dataclass(frozen=True)
class Quantized:
    """What post-training quantization came to.

    Attributes:
        twin: fake-quantized, frozen.
        recipe: what made it.
        observed: the float graph that it was made from.
        trials: what `--ptq auto` tried, in order; empty without.
        effects: of each layer alone, where `--keep-float auto:N` measured them.
        gained: where `--keep-float auto:N` left layers in float: the twin without and with them in float, on
            the same validation images.
        seconds: how long all of it took.
    """

    twin: fx.GraphModule
    recipe: Recipe
    observed: Observed
    trials: list[Trial]
    effects: list[LayerEffect]
    gained: tuple[Fidelity, Fidelity] | None = None
    seconds: float = 0.0


@dataclass
class Workbench:
    """The objects of one run, made when first asked for."""

    config: RunConfig
    folder: RunFolder | None = None
    reporter: Reporter = field(default_factory=Reporter)

    @classmethod
    def open(cls, path: Path, reporter: Reporter, **changes: object) -> Workbench:
        """Reopen a run's folder, with some choices changed.

        Raises:
            InputError: the folder is not a run's.
        """
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise InputError(
                f"run folder: {path} is not a run's folder (no config.json); run `qrobust quantize` first"
            )
        kept = read_json(folder.config)
        if not is_run(kept):
            raise InputError(f"run folder: {path} is not a run's folder (its config.json is of something else)")
        # No scene is a choice; of others None means that nothing was said.
        given = {k: v for k, v in changes.items() if v is not None or k == "scene_images"}
        if given.get("seed", kept.get("seed")) != kept.get("seed"):
            raise InputError(f"seed: the splits of {path} were drawn with {kept.get('seed')}, got {given['seed']}")
        return cls(RunConfig.from_json(kept | given), folder, reporter)

    def place(self) -> RunFolder:
        """The folder, which must have been made."""
        assert self.folder is not None, "no stage runs without a folder"
        return self.folder

    @cached_property
    def model_spec(self) -> ModelSpec:
        return find_model(self.config.model)

    @cached_property
    def target(self) -> Target:
        if self.config.target not in TARGETS:
            raise unknown("target", self.config.target, TARGETS)
        return TARGETS[self.config.target]

    @cached_property
    def _data(self) -> Data:
        """Before it is known how many channels the network reads."""
        c = self.config
        return open_data(
            c.data,
            seed=c.seed,
            image_size=c.image_size,
            preferred_size=self.model_spec.preferred_size,
            calibration_images=c.calibration_images,
            train_images=c.train_images,
            test_images=c.test_images,
            class_names_file=Path(c.class_names) if c.class_names else None,
            root=Path(c.data_root) if c.data_root else None,
            # Of other data it is, or in a run's folder was, about a scene's images.
            skip_bad_images=c.skip_bad_images
            and (c.data.startswith("imagefolder:") or not (c.scene_images or self.folder)),
        )

    @cached_property
    def data(self) -> Data:
        """Images as the network reads them: in colour, or their luma."""
        return self._data.read_with(self.model.channels)

    @cached_property
    def model(self) -> NormalizedModel:
        """The float classifier: from the folder once it is there, else from where the user said."""
        c, stored = self.config, self.folder is not None and self.folder.weights.exists()
        if not stored and c.weights is None and not c.pretrained:
            self.reporter.warn("warning: no --weights given, the network has random weights")
        weights = Path(c.weights).expanduser() if c.weights else None
        return load_model(
            self.model_spec,
            classes=len(self._data.class_names),
            image_size=self._data.image_size,
            weights=self.place().weights if stored else weights,
            pretrained=c.pretrained and not stored,
            normalization=c.normalization,
            seed=c.seed,
        )

    def save_model(self) -> None:
        """Keep the float weights in the folder."""
        state = {k: v.detach().clone().contiguous() for k, v in self.model.network.state_dict().items()}
        with whole(self.place().weights) as part:
            save_file(state, part)

    @cached_property
    def example(self) -> torch.Tensor:
        """A gray image `(1, C, S, S)`, to learn shapes from."""
        return torch.full((1, self.model.channels, self.data.image_size, self.data.image_size), 0.5)

    def calibration_batches(self) -> Iterator[torch.Tensor]:
        """Calibration images in [0, 1], in batches."""
        split = self.data.calibration
        with self.reporter.bar("observe ranges", len(split)) as bar:
            for images, _ in split.batches(BATCH):
                yield images.to(torch.float32) / 255
                bar.update(len(images))

    def judges(self, count: int, pixels: int = JUDGE_PIXELS) -> Split:
        """At most so many validation images, and pixels of them, to choose or compare by."""
        return self.some(self.data.validation, count, pixels)

    def some(self, split: Split, count: int, pixels: int = JUDGE_PIXELS) -> Split:
        """The first images of a split, at most so many, and pixels of them."""
        return split.first(max(FEWEST_JUDGES, min(count, pixels // self.data.image_size**2)))

    @cached_property
    def recipe(self) -> Recipe:
        """How the classifier is asked to be quantized; `quantized` knows what became of it.

        Raises:
            InputError: a choice that does not exist.
        """
        c = self.config
        exceptions = []
        for entry in c.layer_bits:
            layer, _, bits = entry.rpartition("=")
            if not layer:
                raise InputError(f"layer_bits: expected LAYER=BITS, got {entry!r}")
            exceptions.append((layer, bits))
        exceptions += [(layer, "float") for layer in c.keep_float if not layer.startswith("auto:")]
        return Recipe(c.bits, c.edges, tuple(exceptions), c.observer, c.equalize, c.bias_correction, c.rounding)

    @cached_property
    def quantized(self) -> Quantized:
        """The result of post-training quantization, made anew."""
        started = time.perf_counter()
        found = self._quantized_but_worst()
        bits = found.recipe.for_layers(found.observed.layers)
        if not bits:
            raise InputError("model: expected a convolution or a linear layer to quantize, found none")
        if self.config.rounding != "nearest" and not any(b is not None and b[0] < 8 for b in bits.values()):
            raise InputError(
                f"rounding: {self.config.rounding} is for weights of fewer than 8 bits, and no layer has such"
            )
        if self.config.storage == "int4" and not any(b is not None and b[0] == 4 for b in bits.values()):
            raise InputError("storage: int4 is for weights of 4 bits, and no layer is left with such")
        return replace(found, seconds=time.perf_counter() - started)

    def _quantized_but_worst(self) -> Quantized:
        """All layers, but for the worst ones where `--keep-float auto:N` is wanted."""
        automatic = [k for k in self.config.keep_float if k.startswith("auto:")]
        if not automatic:
            return self._quantized(self.recipe)
        count = automatic[0].removeprefix("auto:")
        if len(automatic) > 1 or not count.isdecimal():
            raise InputError(f"keep_float: expected layer names or one auto:N, got {', '.join(automatic)}")
        judge = self.judges(SENSITIVITY_IMAGES)
        layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in self.model.modules())
        with self.reporter.bar("judge layers", layers) as bar:
            recipe, effects = keep_worst_in_float(
                self.model,
                self.target,
                self.calibration_batches,
                judge,
                self.recipe,
                int(count),
                progress=lambda name: bar.update(1, name),
            )
        without, kept = self._quantized(self.recipe), self._quantized(recipe)
        reference = logits_on(kept.observed.graph, judge)
        gained = [fidelity(reference, logits_on(q.twin, judge), judge.labels) for q in (without, kept)]
        return replace(kept, effects=effects, gained=(gained[0], gained[1]))

    def _quantized(self, recipe: Recipe) -> Quantized:
        if self.config.ptq == "auto":
            twin, recipe, trials, observed = search(
                self.model,
                self.target,
                self.calibration_batches,
                self.judges(SEARCH_IMAGES),
                recipe,
                seed=self.config.seed,
                progress=lambda trial: self.reporter.say(f"  {trial}"),
            )
            return Quantized(twin, recipe, observed, trials, [])
        observed = observe(self.model, self.calibration_batches(), recipe)
        return Quantized(build(observed, self.target, recipe, seed=self.config.seed), recipe, observed, [], [])

    @cached_property
    def twin(self) -> fx.GraphModule:
        """The fake-quantized twin that the folder holds."""
        stage = self.place().need_stage("quantize", "quantize")
        return restore(
            self.model,
            self.target,
            self.data.image_size,
            _integers(self.place().twin, "quantize"),
            channels=self.model.channels,
            recipe=Recipe.from_json(stage["quantization"]["recipe"]),
        )

    def save_twin(self, twin: fx.GraphModule) -> None:
        """Keep the twin's integers in the folder, and use it from now on."""
        self.__dict__["twin"] = twin
        _save(twin, self.place().twin)

    @cached_property
    def chosen_by(self) -> Split:
        """Validation images that compensation is chosen by; without labels, the float model says what they are."""
        split = self.data.validation
        if self.config.use_labels:
            return split
        session = self.session("float")
        return split.relabelled(torch.cat([session(to_unit(images)).argmax(1) for images, _ in split.batches(BATCH)]))

    @cached_property
    def scene(self) -> Scene | None:
        """Real images of a new scene, if the run was given any."""
        spec = self.config.scene_images
        if spec is None:
            return None
        scene = open_scene(
            folder_of(spec),
            image_size=self.data.image_size,
            channels=self.model.channels,
            class_names=self.data.class_names,
            seed=self.config.seed,
            skip_bad=self.config.skip_bad_images,
        )
        splits = (scene.training, scene.validation, scene.test)
        if skipped := scene.training.source.skipped:
            self.reporter.warn(
                f"target images: left out {len(skipped)} files that cannot be decoded: {', '.join(skipped)}"
            )
        with about_scene(), self.reporter.bar("read the scene", sum(map(len, splits))) as bar:
            for images, _ in (batch for split in splits for batch in split.batches(BATCH)):
                bar.update(len(images))
        return scene

    @cached_property
    def lessons(self) -> Split:
        """Images that compensation may learn from."""
        few, training = self.config.few_shot, self.data.training
        if few and few > len(training):
            raise InputError(f"few_shot: expected at most the {len(training)} training images, got {few}")
        return training.first(few) if few else training

    def calibrators_within_budget(self) -> list[tuple[int, tuple[str, ...]]]:
        """Widths and branches of the calibrators that the budget of multiply-accumulates allows, best first."""
        size, channels = self.data.image_size, self.model.channels
        # Without labels, anything local would learn to paint what the classifier expects to see.
        unlabelled = self.scene is not None and not (self.scene.labelled and self.config.use_labels)
        branches = self.config.branches or (("photometric",) if unlabelled else ())
        whole = count_macs(self.model, size, channels)
        return within_budget(size, self.config.mac_budget, whole, branches, channels)

    def new_calibrator(self, width: int, branches: tuple[str, ...]) -> Calibrator:
        """An identity calibrator, seeded."""
        torch.manual_seed(self.config.seed)
        return Calibrator(self.data.image_size, width, branches, self.model.channels)

    @cached_property
    def calibrator(self) -> nn.Module:
        """The frozen integer calibrator that the folder holds."""
        stage = self.place().need_stage("compensate", "compensate")
        if stage.get("calibrator_version") != CALIBRATOR_VERSION:
            raise InputError(
                f"run folder: the calibrator in {self.place().path} is of another version of qrobust; "
                "run `qrobust compensate` again"
            )
        return restore(
            self.new_calibrator(stage["width"], tuple(stage["branches"])).eval(),
            self.target,
            self.data.image_size,
            _integers(self.place().calibrator, "compensate"),
            channels=self.model.channels,
            leaves=(Correction,),
        )

    def save_calibrator(self, calibrator: nn.Module) -> None:
        """Keep the frozen calibrator in the folder, and use it from now on."""
        self.__dict__["calibrator"] = calibrator
        _save(calibrator, self.place().calibrator)

    def torch_classifier(self, name: str) -> nn.Module:
        """The differentiable form of a graph."""
        if name == "float":
            return self.model
        return self.twin if name == "int8" else Compensated(self.calibrator, self.twin)

    def session(self, name: str) -> OnnxClassifier:
        """The exported graph as a classifier."""
        return self.on_target(self.place().graph(name))

    def on_target(self, path: Path) -> OnnxClassifier:
        """A graph as the target runs it: with the integers that it has there, though not with the speed."""
        return OnnxClassifier(path, self.config.threads, **self.session_options)

    @property
    def session_options(self) -> dict[str, Any]:
        """How onnxruntime is to compute as on the target, whatever this CPU."""
        return {"signed_activations": self.target.signed or None, "exact_sums": self.target.exact_sums}

    @cached_property
    def table(self) -> str:
        chosen = self.config.severity_table
        return table_for(self.data.image_size) if chosen == "auto" else chosen

    @cached_property
    def cells(self) -> list[tuple[str, int]]:
        """Every (shift, severity) to measure."""
        return cells(expand(self.config.shifts), self.config.severities, self.table)

    @cached_property
    def stored(self) -> list[StoredCells]:
        """What to measure of every stored set.

        Raises:
            InputError: one is not what its layout says, or does not fit the classes.
        """
        c = self.config
        found = open_sets(
            c.shifts,
            severities=c.severities,
            image_size=self.data.image_size,
            channels=self.model.channels,
            class_names=self.data.class_names,
            test_images=c.test_images,
            seed=c.seed,
        )
        for doubt in filter(None, (s.doubt for s in found)):
            self.reporter.warn(doubt)
        return found

    def check_hold_out(self) -> None:
        """Refuse to hold out what is not there to be measured.

        Raises:
            InputError: names what is held out but not among the shifts chosen.
        """
        rendered = expand(self.config.shifts)
        held_out = [part for name in self.config.hold_out for part in SUITES.get(name, (name,))]
        strangers = [name for name in held_out if name not in rendered]
        if strangers:
            raise InputError(
                f"hold_out: expected some of the shifts chosen ({', '.join(rendered)}), got {', '.join(strangers)}"
            )

    @cached_property
    def training_cells(self) -> list[tuple[str, int]]:
        """Every (shift, severity) a calibrator may learn from.

        Raises:
            InputError: there is none; the message names the choice that left none.
        """
        if self.config.scene_images and self.config.scene_alone:
            return []
        held_out = expand(self.config.hold_out) if self.config.hold_out else ()
        rendered = expand(self.config.shifts)
        found = cells(tuple(n for n in rendered if n not in held_out), self.config.severities, self.table)
        if found:
            return found
        if not rendered:
            raise InputError(
                f"shifts: expected one that can be rendered, to train on, got {', '.join(self.config.shifts)}"
            )
        if not self.cells:
            raise InputError(
                f"severities: expected one defined for {', '.join(rendered)}, got "
                f"{', '.join(map(str, self.config.severities))}"
            )
        raise InputError(
            f"hold_out: expected to leave one of {', '.join(rendered)} to train on, got {', '.join(held_out)}"
        )


def _integers(path: Path, command: str) -> dict[str, torch.Tensor]:
    """What a stage saved, which the command makes again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"run folder: {path} cannot be read ({error}); run `qrobust {command}` again") from error


def _save(module: nn.Module, path: Path) -> None:
    """A state dict without the second names of shared modules' tensors lost on the way."""
    with whole(path) as part:
        save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, part)
