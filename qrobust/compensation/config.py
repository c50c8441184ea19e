"""How a calibrator is sized, trained and chosen; plain choices, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qrobust.choices import Section, choice
from qrobust.remedies import CALIBRATOR, OF_RUN

# Images larger than this are looked at through a stride of 4 instead of 2, and time is bounded unless that is waived:
# float operators on whole pictures take as long as the classifier there.
FINE_SIZE, LARGE_LATENCY_BUDGET = 64, 1.25
# One standard error of some thousand images below the half point beyond which the report does not recommend. Without
# labels an answer counts as lost whether it was right or not, and as many are won that nobody sees: what repairs most
# changes a tenth of the answers and costs no accuracy.
CLEAN_BUDGET, AGREEMENT_BUDGET = 0.3, 15.0


@dataclass(frozen=True)
class CalibratorConfig(Section):
    """Choices of remedies, most of them of a calibrator's training.

    Attributes:
        remedy: what a whole run makes, see `qrobust.remedies`.
        mac_budget: multiply-accumulates, as a fraction of the classifier's.
        latency_budget: most batch-1 time of the compensated classifier relative to the INT8 classifier alone; 0: no
            limit; None: `LARGE_LATENCY_BUDGET` above `FINE_SIZE` pixels as far as it can be kept, else no limit.
        clean_budget: what a remedy may cost on clean validation images, in percentage points: of accuracy, or without
            labels of agreement with what the classifier said before. None: `CLEAN_BUDGET` or `AGREEMENT_BUDGET`.
        branches: corrections that it may make: residual, photometric, geometric; none given: all that fit.
        steps: training steps.
        batch_size: images per training step.
        learning_rate: of Adam, at its peak while pixels are restored.
        use_labels: learn from labels, or from the float model's predictions alone.
        hard_shift_share: share of the training shifts that are drawn by how much they hurt the INT8 classifier.
        evolution_steps: random steps of the last biases at the end, each measured on the deployed classifier.
        few_shot: learn from only so many training images; None or 0: all.
        distillation_weight: of the squared distances to the float model's logits and features on the clean image.
        correction_output: the exported graph has a second output, how far the gate is open.
        reverse_weight: of the pull towards reverse adversarial examples of the clean images.
    """

    remedy: str = choice(CALIBRATOR, one_of=OF_RUN)
    mac_budget: float = choice(0.10, above=0, at_most=1)
    latency_budget: float | None = choice(None, at_least=0, at_most=1000)
    clean_budget: float | None = choice(None, at_least=0, at_most=100)
    branches: tuple[str, ...] = choice((), one_of=("residual", "photometric", "geometric"))
    steps: int = choice(4000, at_least=5, at_most=10**8)
    batch_size: int = choice(128, at_least=16, at_most=2**16)
    learning_rate: float = choice(2e-3, above=0, at_most=1)
    use_labels: bool = True
    hard_shift_share: float = choice(0.0, at_least=0, at_most=1)
    evolution_steps: int = choice(0, at_least=0, at_most=10**6)
    few_shot: int | None = choice(None, at_least=0, at_most=10**9)
    distillation_weight: float = choice(1.0, at_least=0, at_most=10**6)
    correction_output: bool = False
    reverse_weight: float = choice(0.0, at_least=0, at_most=10**6)

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if self.well_typed() and self.latency_budget and not self.latency_budget > 1:
            yield f"latency_budget: expected a factor above 1, or 0 for none, got {self.latency_budget}"

    @property
    def clean_limit(self) -> float:
        """What `clean_budget` comes to, in percentage points."""
        if self.clean_budget is not None:
            return self.clean_budget
        return CLEAN_BUDGET if self.use_labels else AGREEMENT_BUDGET

    def latency_limit(self, image_size: int) -> float:
        """What `latency_budget` comes to for images of a size; 0: no limit."""
        if self.latency_budget is not None:
            return self.latency_budget
        return LARGE_LATENCY_BUDGET if image_size > FINE_SIZE else 0.0
