"""What a plan says besides its operations: for which model, by whom, from which scores, at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

__all__ = [
    "PlanCost",
    "PlanDiff",
    "PlanPart",
    "Provenance",
    "RecoveryCost",
    "ScoreTable",
    "Target",
    "first_problem",
    "without_default",
]


class PlanPart(BaseModel):
    """Frozen, and nothing that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def without_default(part: BaseModel, said: dict[str, Any], *names: str) -> dict[str, Any]:
    """What `part` says of itself, without those fields of `names` that are as if never given.

    For fields that came later: where there is nothing to say, what is written reads as it always did.
    """
    for name in names:
        if getattr(part, name) == type(part).model_fields[name].get_default(call_default_factory=True):
            said.pop(name, None)
    return said


class Target(PlanPart):
    """The model that a plan was made for."""

    model: str
    revision: str
    n_layers: int = Field(ge=1)


class ScoreTable(PlanPart):
    """One value per decoder layer, also for those that stay. Higher means: removed earlier."""

    values: tuple[float, ...]
    meaning: str = Field(description="the formula in words, e.g. 'mean token cosine of layer input and output'")
    columns: dict[str, tuple[float, ...]] = Field(default_factory=dict, description="further values per layer")


class Provenance(PlanPart):
    """Who made the plan, from what."""

    strategy: str
    plugin: str | None = None
    version: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    selection: str = ""
    protected: tuple[int, ...] = ()
    tie_break: str = "deeper layer first"
    calibration_fingerprint: str | None = None
    trace_digest: str | None = None
    warnings: tuple[str, ...] = ()
    notes: dict[str, Any] = Field(default_factory=dict)


class RecoveryCost(PlanPart):
    """What recovering took, after the plan was found."""

    forward_passes: int = Field(description="single samples through the model, also where a pass was stopped early")
    backward_passes: int = Field(description="single samples")
    tokens: int = Field(description="through the model in training or in fitting, without padding")
    seconds: float


class PlanCost(PlanPart):
    """What finding the plan took; calibration is shared by all strategies of a run and stands apart."""

    forward_passes: int = 0
    backward_passes: int = 0
    calibration_tokens: int = 0
    calibration_seconds: float = 0.0
    search_seconds: float = 0.0
    peak_memory: int | None = Field(
        default=None,
        description="bytes that the search held at most. On CUDA: torch's peak allocation while it ran, with the dense "
        "model and with plans that were made together with it. Elsewhere counted, beside the dense model and as if the "
        "plan had been made alone: the calibration samples' inputs, hidden states, statistics of one layer, and that "
        "layer's masks and new weights; of a search by gradients, those of all weights, without activations. Null: not "
        "known",
    )
    recovery: RecoveryCost | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without recovery where there was none, and a peak that is not known: such a plan reads as it always did."""
        return without_default(self, handler(self), "recovery", "peak_memory")


@dataclass(frozen=True)
class PlanDiff:
    """How two plans for one model differ, in removed layers."""

    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    common: tuple[int, ...]

    @property
    def jaccard(self) -> float:
        """Overlap of the two removed sets in [0, 1]; two empty plans overlap fully."""
        union = len(self.only_first) + len(self.only_second) + len(self.common)
        return len(self.common) / union if union else 1.0


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings in one line, with the place it is about."""
    finding = error.errors()[0]
    place = ".".join(str(part) for part in finding["loc"])
    message = finding["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
