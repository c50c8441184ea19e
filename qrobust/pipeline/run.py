"""A run's folder, and the objects of a run rebuilt from it.

Everything a later stage needs lies in the folder, apart from the data and (for `file.py:FACTORY`) the model's code:
the configuration, the float weights, the integers of the fake-quantized model and of the calibrator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn

from qrobust.classifier import Compensated, NormalizedModel
from qrobust.compensation.calibrator import CALIBRATOR_VERSION, Correction
from qrobust.compensation.fit import new_calibrator
from qrobust.data.loading import open_data
from qrobust.data.splits import Data
from qrobust.data.target_images import TargetImages, folder_of, naming_target_images, open_target_images
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.deploy import deploy, open_on_target, times_ms
from qrobust.device import Device, find_device
from qrobust.errors import InputError
from qrobust.evaluation.config import AUTO
from qrobust.evaluation.corruption_sets import SelectedConditions, open_sets
from qrobust.evaluation.primary import Primary, find_primary
from qrobust.models.loading import as_classifier, build_network, interface_of, refuse_weights, size_of
from qrobust.models.registry import ModelSpec, find_model, preset_of
from qrobust.paths import check_file, user_path
from qrobust.pipeline.config import RunConfig
from qrobust.pipeline.run_folder import RunFolder, open_run
from qrobust.preprocessing import Preprocessing, resolve
from qrobust.progress import Reporter
from qrobust.quantization.ptq import restore
from qrobust.quantization.quantize import SEARCH_IMAGES, FakeQuantizedModel, find_target, quantize_classifier
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import Target
from qrobust.record import CompensationResult, Duplicates, QuantizationResult, SplitSummary, taken
from qrobust.record.start import Start
from qrobust.report.data import left_out_sentence
from qrobust.shifts.registry import defined_conditions, expand, table_for
from qrobust.storage import atomic_write
from qrobust.user_code import (
    code_of,
    govern,
    hashes,
    is_code,
    same_code,
    trust,
)

BATCH = 64


@dataclass
class Run:
    """The configuration and the folder of one run, and its objects, made or loaded when first asked for."""

    config: RunConfig
    folder: RunFolder | None = None
    reporter: Reporter = field(default_factory=Reporter)
    start: Start | None = None  # what a new run found; one that is opened again has it in its folder
    duplicates: tuple[Duplicates, ...] = ()  # between splits, found where all of them are read
    teacher_name: ClassVar[str] = "float"  # what says what images are where labels do not

    def __post_init__(self) -> None:
        trust(self.code_specs)

    @classmethod
    def open(
        cls,
        path: Path,
        reporter: Reporter,
        *,
        named: Sequence[str] = (),
        allow_code: Sequence[str] = (),
        **changes: Any,
    ) -> Run:
        """Reopen a run's folder, with some choices changed.

        Args:
            path: the folder.
            reporter: where progress is told.
            named: `FILE.py:NAME` that may run though only the folder names them otherwise.
            allow_code: SHA-256 of files that may run.
            changes: choices; a model must be the run's own, and is thereby named.

        Raises:
            InputError: the folder is not a run's, or is of another model.
        """
        folder, kept, own = open_run(path, **{name: value for name, value in changes.items() if name != "model"})
        model, shifts = changes.get("model"), (*(changes.get("shifts") or ()), *(changes.get("train_on") or ()))
        if model is not None and not same_code(str(model), kept.model.spec):
            raise InputError(f"model: {path} is a run of {kept.model.spec}, got {model}")
        run = cls(own, folder, reporter)  # a new run's files run as named; these run on terms, set from here on
        govern(
            {
                **dict.fromkeys(own.shifts.train_on, "train-on"),
                **dict.fromkeys(own.shifts.names, "shifts"),
                own.model.spec: "model",
            },
            owner=path,
            named=[*named, *shifts, *([own.model.spec] if model is not None else [])],
            anew=shifts,
            recorded=own.code,
            allowed=hashes(allow_code),
            warn=reporter.warn,
        )
        return run

    @property
    def code_specs(self) -> list[str]:
        """Every `FILE.py:NAME` that the configuration names."""
        shifts = dict.fromkeys((*self.config.shifts.names, *self.config.shifts.train_on))
        return [spec for spec in (self.config.model.spec, *shifts) if is_code(spec)]

    @property
    def config_with_code(self) -> RunConfig:
        """The configuration, with what ran of the files that it names."""
        return replace(self.config, code=code_of(self.code_specs, self.config.code))

    def require_folder(self) -> RunFolder:
        """The folder, which must have been made."""
        assert self.folder is not None, "no stage runs without a folder"
        return self.folder

    @contextmanager
    def _named_by_the_folder(self) -> Iterator[None]:
        """Say where a choice stands that no command gave since the run began."""
        try:
            yield
        except InputError as error:
            if self.folder is None or not self.folder.weights.exists():
                raise
            raise InputError(f"{error}; {self.folder.config} names it") from error

    # What the configuration names.

    @cached_property
    def model_spec(self) -> ModelSpec:
        """Where the network comes from."""
        return find_model(self.config.model.spec)

    @cached_property
    def target(self) -> Target:
        """The CPU family whose integers count."""
        return find_target(self.config.quantization.target)

    @cached_property
    def device(self) -> Device:
        """Where torch trains and attacks."""
        return find_device(self.config.device)

    @cached_property
    def _opened(self) -> Data:
        """Before it is known how the network reads images."""
        with self._named_by_the_folder():
            return self._open_data()

    def _open_data(self) -> Data:
        c, shifts = self.config.data, self.config.shifts
        return open_data(
            c.spec,
            seed=self.config.seed,
            calibration_images=c.calibration_images,
            train_images=c.train_images,
            test_images=c.test_images,
            class_names_file=Path(c.class_names) if c.class_names else None,
            root=Path(c.root) if c.root else None,
            # Of other data it is, or in a run's folder was, about the target images.
            skip_bad_images=c.skip_bad_images
            and (c.spec.startswith(("imagefolder:", "list:")) or not (shifts.target_images or self.folder)),
        )

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input: as the folder's graphs were made, else as is said now.

        Raises:
            InputError: neither the user nor the model says size or normalisation.
        """
        found = self.model_spec  # where its code may not run, nothing is opened
        done = self.folder.result(QuantizationResult, "quantize") if self.folder else None
        if done and done.preprocessing:
            return done.preprocessing
        spec, native_size, chosen = self.config.model.spec, self._opened.native_size, self.config.preprocessing
        preset = preset_of(found, self._network)
        if done:  # of a version that kept the size alone; own code without a normalisation had none
            preset = replace(preset, image_size=done.image_size, normalization=preset.normalization or "none")
            chosen = replace(chosen, image_size=done.image_size)
        size = size_of(found, chosen, preset, native_size)
        interface = interface_of(self._network, spec, len(self._opened.class_names), size)
        if said := str(interface.output):
            self.reporter.say(f"model: {said}")
        return resolve(chosen, preset, size, native_size=native_size, channels=interface.channels)

    @cached_property
    def data(self) -> Data:
        """Images as the network reads them."""
        return self._opened.prepared(self.preprocessing)

    @cached_property
    def model(self) -> NormalizedModel:
        """The float classifier, with its normalisation inside."""
        spec, prepared = self.config.model.spec, self.preprocessing
        interface = interface_of(self._network, spec, len(self._opened.class_names), prepared.size)
        return as_classifier(self._network, spec, prepared, interface.output)

    @cached_property
    def _network(self) -> nn.Module:
        """The float network: from the folder once it is there, else from where the user said."""
        c, stored = self.config.model, self.folder is not None and self.folder.weights.exists()
        if not stored:
            refuse_weights(self.model_spec, c.weights)
        if not stored and c.weights is None and not c.pretrained:
            if self.model_spec.has_weights:
                pass
            elif is_code(c.spec):
                self.reporter.say(f"no --weights given: the weights are those that {c.spec} set")
            else:
                self.reporter.warn("warning: no --weights given, the network has random weights")
        if not stored and c.weights and self.model_spec.note:
            self.reporter.say(self.model_spec.note)
        weights = user_path(c.weights) if c.weights else None
        return build_network(
            self.model_spec,
            classes=len(self._opened.class_names),
            weights=self.require_folder().weights if stored else weights,
            pretrained=c.pretrained and not stored,
            seed=self.config.seed,
        )

    @cached_property
    def target_images(self) -> TargetImages | None:
        """Real images of the new surroundings, if the run was given any."""
        spec = self.config.shifts.target_images
        if spec is None:
            return None
        found = open_target_images(
            folder_of(spec),
            preprocessing=self.preprocessing,
            class_names=self.data.class_names,
            seed=self.config.seed,
            skip_bad=self.config.data.skip_bad_images,
        )
        splits = (found.training, found.validation, found.test)
        if skipped := found.training.source.skipped:
            self.reporter.warn(
                f"target_images: left out {len(skipped)} files that cannot be decoded: {', '.join(skipped)}"
            )
        if left_out := left_out_sentence(found.training.source.left_out):
            self.reporter.warn(f"target_images: {left_out}")
        with naming_target_images(), self.reporter.bar("read the target images", sum(map(len, splits))) as bar:
            for images, _ in (batch for split in splits for batch in split.batches(BATCH)):
                bar.update(len(images))
        return found

    @cached_property
    def table(self) -> str:
        """The severity table."""
        chosen = self.config.shifts.severity_table
        return table_for(self.data.image_size) if chosen == "auto" else chosen

    @cached_property
    def conditions(self) -> list[tuple[str, int]]:
        """Every (shift, severity) to measure."""
        return defined_conditions(expand(self.config.shifts.names), self.config.shifts.severities, self.table)

    @cached_property
    def stored(self) -> list[SelectedConditions]:
        """What to measure of every corruption set on disk.

        Raises:
            InputError: one is not what its layout says, or does not fit the classes.
        """
        found = open_sets(
            self.config.shifts.names,
            severities=self.config.shifts.severities,
            preprocessing=self.preprocessing,
            class_names=self.data.class_names,
            test_images=self.config.data.test_images,
            seed=self.config.seed,
        )
        for doubt in filter(None, (s.doubt for s in found)):
            self.reporter.warn(doubt)
        return found

    @cached_property
    def primary(self) -> Primary:
        """The measure that decides; `auto` goes by the validation images.

        Raises:
            InputError: there is no such class.
        """
        labels = self.data.validation.labels.numpy()
        asked = self.config.evaluation.primary
        found = find_primary(asked, self.data.class_names, labels)
        for split in (self.data.validation.at_most(SEARCH_IMAGES), self.data.test):  # refused now, not after training
            found.weights(split.labels.numpy())
        if asked == AUTO and not found.is_accuracy:
            self.reporter.say(
                "classes are uneven: balanced accuracy decides; --primary accuracy chooses that instead"
            )
        return found

    # What stages make, keep in the folder and load again.

    @cached_property
    def quantized(self) -> FakeQuantizedModel:
        """The result of post-training quantization, made anew."""
        return quantize_classifier(
            self.model,
            self.data.calibration,
            self.data.validation,
            self.config.quantization,
            primary=self.primary,
            seed=self.config.seed,
            device=self.device,
            timer=self._times_ms,
            reporter=self.reporter,
        )

    def _times_ms(self, first: nn.Module, others: Iterable[nn.Module]) -> list[float]:
        """See `times_ms`, of torch modules as onnxruntime runs them on the target."""
        return times_ms(
            first,
            others,
            self.target,
            image_size=self.data.image_size,
            channels=self.model.channels,
            threads=self.config.threads,
        )

    @property
    def recipe(self) -> Recipe:
        """What the folder's fake-quantized model was made by."""
        done = self.require_folder().need_result(QuantizationResult, "quantize", "quantize")
        return taken(Recipe, done.quantization.recipe)

    @property
    def kept_splits(self) -> Mapping[str, SplitSummary]:
        """Which images each split held when the folder was made."""
        return self.require_folder().need_result(QuantizationResult, "quantize", "quantize").splits

    @cached_property
    def fake_quantized(self) -> fx.GraphModule:
        """The fake-quantized model that the folder holds."""
        return self._restored(self.require_folder().fake_quantized, "quantize")

    def retrained(self, remedy: str) -> fx.GraphModule:
        """The fake-quantized model that a remedy trained and the folder holds."""
        return self._restored(self.require_folder().integers(remedy), f"compensate --remedy {remedy}")

    def _restored(self, path: Path, command: str) -> fx.GraphModule:
        return restore(
            self.model,
            self.target,
            self.data.image_size,
            stored_tensors(path, command),
            channels=self.model.channels,
            recipe=self.recipe,
        )

    @cached_property
    def calibrator(self) -> nn.Module:
        """The frozen integer calibrator that the folder holds."""
        done = self.require_folder().need_result(CompensationResult, "compensate", "compensate")
        if done.calibrator_version != CALIBRATOR_VERSION:
            raise InputError(
                f"run folder: the calibrator in {self.require_folder().path} is of another version of qrobust; "
                "run `qrobust compensate` again"
            )
        size, channels = self.data.image_size, self.model.channels
        fresh = new_calibrator(size, done.width, done.branches, channels, self.config.seed)
        return restore(
            fresh.eval(),
            self.target,
            size,
            stored_tensors(self.require_folder().calibrator, "compensate"),
            channels=channels,
            leaves=(Correction,),
        )

    def save_model(self) -> None:
        """Keep the float weights in the folder."""
        _save(self.model.network, self.require_folder().weights)

    def save_fake_quantized(self, model: fx.GraphModule) -> None:
        """Keep the fake-quantized model's integers in the folder, and use it from now on."""
        self.__dict__["fake_quantized"] = model
        _save(model, self.require_folder().fake_quantized)

    def save_retrained(self, model: fx.GraphModule, remedy: str) -> None:
        """Keep the integers of the model that a remedy trained in the folder."""
        _save(model, self.require_folder().integers(remedy))

    def save_calibrator(self, calibrator: nn.Module) -> None:
        """Keep the frozen calibrator in the folder, and use it from now on."""
        self.__dict__["calibrator"] = calibrator
        _save(calibrator, self.require_folder().calibrator)

    # Its graphs as classifiers.

    def torch_classifier(self, name: str) -> nn.Module:
        """The differentiable form of a graph."""
        if name == "float":
            return self.model
        return self.fake_quantized if name == "int8" else Compensated(self.calibrator, self.fake_quantized)

    def onnx_classifier(self, name: str) -> OnnxClassifier:
        """The exported graph as the target runs it: with the integers that it has there, though not the speed."""
        return open_on_target(self.require_folder().graph(name), self.target, self.config.threads)

    def deploy(self, model: nn.Module) -> OnnxClassifier:
        """A torch module as onnxruntime runs it on the target, without a file that stays.

        The folder's own fake-quantized model is not exported again: its graph is there.
        """
        if model is self.__dict__.get("fake_quantized") and (folder := self.folder) and folder.graph("int8").exists():
            return self.onnx_classifier("int8")
        return deploy(
            model,
            self.target,
            image_size=self.data.image_size,
            channels=self.model.channels,
            threads=self.config.threads,
        )


def stored_tensors(path: Path, command: str) -> dict[str, torch.Tensor]:
    """What a stage saved, which the command makes again."""
    check_file(path, "run folder")
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"run folder: {path} cannot be read ({error}); run `qrobust {command}` again") from error


def _save(module: nn.Module, path: Path) -> None:
    """A state dict without the second names of shared modules' tensors lost on the way."""
    with atomic_write(path) as part:
        save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, part)
