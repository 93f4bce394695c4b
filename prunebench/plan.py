"""A plan: which layers go, why, and what that costs. A JSON artefact that can be diffed, replayed and shared.

A plan is valid without the strategy that made it. The empty plan changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunebench import jsonio
from prunebench.budget import BudgetReport
from prunebench.errors import PlanError, StoreError
from prunebench.model_info import ModelInfo
from prunebench.ops import DropLayer, Op, layers_touched

__all__ = ["Plan", "PlanCost", "PlanDiff", "Provenance", "ScoreTable", "Target", "first_problem"]

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(_Part):
    """The model that a plan was made for."""

    model: str
    revision: str
    n_layers: int = Field(ge=1)


class ScoreTable(_Part):
    """One value per decoder layer, also for those that stay. Higher means: removed earlier."""

    values: tuple[float, ...]
    meaning: str = Field(description="the formula in words, e.g. 'mean token cosine of layer input and output'")
    columns: dict[str, tuple[float, ...]] = Field(default_factory=dict, description="further values per layer")


class Provenance(_Part):
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


class PlanCost(_Part):
    """What finding the plan took; calibration is shared by all strategies of a run and stands apart."""

    forward_passes: int = 0
    backward_passes: int = 0
    calibration_tokens: int = 0
    calibration_seconds: float = 0.0
    search_seconds: float = 0.0


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


class Plan(_Part):
    """Operations on a model, with scores, budget, provenance and cost."""

    schema_version: int = SCHEMA_VERSION
    kind: str = Field(default="layers", description="what is compared with what: layers, width, weights, 2:4")
    target: Target
    ops: tuple[Op, ...] = ()
    scores: ScoreTable | None = None
    budget: BudgetReport | None = None
    provenance: Provenance | None = None
    cost: PlanCost = PlanCost()

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"plan schema {self.schema_version} is not readable here (this version reads {SCHEMA_VERSION})"
            )
        seen: set[int] = set()
        for op in self.ops:
            layers = layers_touched(op)
            if outside := sorted(layer for layer in layers if layer >= self.target.n_layers):
                raise ValueError(
                    f"layer {outside[0]} does not exist: the model has layers 0..{self.target.n_layers - 1}"
                )
            if twice := sorted(layers & seen):
                raise ValueError(f"two operations touch layer {twice[0]}")
            seen |= layers
        if len(self.removed_layers) >= self.target.n_layers:
            raise ValueError("the plan removes every layer: at least one has to stay")
        if self.scores is not None and len(self.scores.values) != self.target.n_layers:
            raise ValueError(f"{len(self.scores.values)} scores for {self.target.n_layers} layers")
        return self

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Original ids of the layers that are removed whole, ascending."""
        return tuple(sorted(op.layer for op in self.ops if isinstance(op, DropLayer)))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Original ids of the layers that stay, ascending."""
        gone = set(self.removed_layers)
        return tuple(layer for layer in range(self.target.n_layers) if layer not in gone)

    @property
    def is_empty(self) -> bool:
        return not self.ops

    @property
    def digest(self) -> str:
        """SHA-256 of what the plan does to which weights: target and operations, not why or at what cost."""
        ops = sorted((op.model_dump(mode="json") for op in self.ops), key=jsonio.canonical)
        return jsonio.digest({"target": self.target.model_dump(mode="json"), "ops": ops})

    def check_target(self, model: ModelInfo) -> None:
        """Refuse a model of other depth or weights, or one that cannot lose what is removed.

        Args:
            model: the dense model.

        Raises:
            PlanError: with what differs.
        """
        target = self.target
        if target.n_layers != model.n_layers:
            raise PlanError(
                f"the plan is for {target.n_layers} decoder layers, the model has {model.n_layers}: "
                "load the dense model"
            )
        if (target.model, target.revision) != (model.name, model.revision):
            raise PlanError(
                f"the plan was made for {target.model} ({target.revision[:12]}), "
                f"this is {model.name} ({model.revision[:12]}): plan anew"
            )
        if taken := sorted(set(self.removed_layers) & set(model.protected)):
            raise PlanError(f"layer {taken[0]} of {model.name} cannot be removed: the architecture needs it")

    def diff(self, other: Plan) -> PlanDiff:
        """Compare removed layers.

        Raises:
            PlanError: the plans are for models of different depth.
        """
        if self.target.n_layers != other.target.n_layers:
            raise PlanError(f"plans for {self.target.n_layers} and {other.target.n_layers} layers cannot be compared")
        mine, theirs = set(self.removed_layers), set(other.removed_layers)
        return PlanDiff(tuple(sorted(mine - theirs)), tuple(sorted(theirs - mine)), tuple(sorted(mine & theirs)))

    @classmethod
    def drop(cls, model: ModelInfo, layers: Iterable[int] = (), **parts: Any) -> Plan:
        """The plan that removes `layers` (original ids) of `model`."""
        target = Target(model=model.name, revision=model.revision, n_layers=model.n_layers)
        try:
            return cls(target=target, ops=tuple(DropLayer(layer=int(layer)) for layer in sorted(layers)), **parts)
        except ValidationError as error:
            raise PlanError(first_problem(error)) from error

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Read a plan.

        Raises:
            PlanError: not JSON, an unknown field or operation, or an inconsistent plan.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(f"{source}: {first_problem(error)}") from error

    def save(self, path: str | Path) -> None:
        jsonio.write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read plan {path}: {error}") from error
        return cls.from_json(text, source=str(path))


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings in one line, with the place it is about."""
    finding = error.errors()[0]
    place = ".".join(str(part) for part in finding["loc"])
    message = finding["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
