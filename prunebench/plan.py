"""A plan: which layers go, why, and what that costs. A JSON artefact that can be diffed, replayed and shared.

A plan is valid without the strategy that made it. The empty plan changes nothing, bit for bit. Numbers that operations
need (matrices, new weights) are kept beside the JSON in a safetensors file, which the JSON names by its digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from prunebench import jsonio
from prunebench.budget import BudgetReport
from prunebench.errors import PlanError, StoreError
from prunebench.model_info import ModelInfo
from prunebench.ops import (
    DropLayer,
    Merge,
    Op,
    Part,
    ReplaceBlock,
    canonical_ops,
    layers_touched,
    reads_bits,
    removed_layers,
    removed_sublayers,
    tensor_names,
    without_attention,
)
from prunebench.overlap import check_overlap
from prunebench.plan_parts import (
    PlanCost,
    PlanDiff,
    PlanPart,
    Provenance,
    ScoreTable,
    Target,
    first_problem,
    without_default,
)
from prunebench.plan_tensors import PlanTensors, side_file

__all__ = ["Plan", "PlanCost", "PlanDiff", "Provenance", "ScoreTable", "Target", "first_problem"]

SCHEMA_VERSION = 1


class Plan(PlanPart):
    """Operations on a model, with scores, budget, provenance and cost.

    A plan that comes from JSON alone (a record, say) knows the digest of its tensors but does not hold them: `load` and
    `Store.whole_plan` put them back, and until then it can be read and compared, not applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    schema_version: int = SCHEMA_VERSION
    kind: str = Field(default="layers", description="what is compared with what: layers, width, weights, 2:4")
    target: Target
    ops: tuple[Op, ...] = ()
    tensors_digest: str | None = Field(default=None, description="of the numbers that operations need; null: none")
    scores: ScoreTable | None = None
    budget: BudgetReport | None = None
    provenance: Provenance | None = None
    cost: PlanCost = PlanCost()
    tensors: PlanTensors = Field(default_factory=PlanTensors, exclude=True, repr=False)

    @field_validator("tensors", mode="before")
    @classmethod
    def _as_tensors(cls, value: Any) -> Any:
        return value if isinstance(value, PlanTensors) or not isinstance(value, Mapping) else PlanTensors(value)

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the digest where there are no tensors: such a plan reads as it always did."""
        return without_default(self, handler(self), "tensors_digest")

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"plan schema {self.schema_version} is not readable here (this version reads {SCHEMA_VERSION})"
            )
        for op in self.ops:
            # Of a block only the end is looked at: a damaged file may name one that no memory holds.
            last = op.stop - 1 if isinstance(op, ReplaceBlock) else max(layers_touched(op))
            if last >= self.target.n_layers:
                raise ValueError(f"layer {last} does not exist: the model has layers 0..{self.target.n_layers - 1}")
        check_overlap(self.ops)
        if len(self.removed_layers) >= self.target.n_layers:
            raise ValueError("the plan removes every layer: at least one has to stay")
        if self.scores is not None and len(self.scores.values) != self.target.n_layers:
            raise ValueError(f"{len(self.scores.values)} scores for {self.target.n_layers} layers")
        self._check_tensors()
        return self

    def _check_tensors(self) -> None:
        """Each operation has its tensors, each tensor its operation."""
        if not self.tensors and self.tensors_digest is not None:
            return  # they lie elsewhere
        owner: dict[str, Op] = {}
        for op in self.ops:
            for name in tensor_names(op, self.tensors):
                if name in owner:
                    raise ValueError(f"two operations read the tensor {name!r}: give each its own name")
                self.tensors.check_format(name, bits=reads_bits(op))
                owner[name] = op
        if idle := sorted(set(self.tensors) - set(owner)):
            raise ValueError(f"no operation reads the tensor {idle[0]!r}: leave it out")
        if self.tensors_digest not in (None, self.tensors.digest):
            raise ValueError("the tensors are not those that tensors_digest stands for")
        object.__setattr__(self, "tensors_digest", self.tensors.digest)  # frozen for everyone else

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Original ids of the layers whose place in the decoder goes, ascending."""
        return tuple(sorted(removed_layers(self.ops)))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Original ids of the layers that keep their place, changed or not, ascending."""
        gone = set(self.removed_layers)
        return tuple(layer for layer in range(self.target.n_layers) if layer not in gone)

    @property
    def removed_sublayers(self) -> tuple[tuple[int, Part], ...]:
        """(original id, ``attention`` or ``mlp``) of what goes from layers that stay, ascending."""
        return removed_sublayers(self.ops)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Original ids of the kept layers that still have attention, and with it a place in the key-value cache."""
        without = without_attention(self.ops)
        return tuple(layer for layer in self.kept_layers if layer not in without)

    @property
    def needed_layers(self) -> tuple[int, ...]:
        """Original ids of the layers whose weights are wanted: those that stay, and those merged into others."""
        merged = {source for op in self.ops if isinstance(op, Merge) for source in op.sources}
        return tuple(sorted({*self.kept_layers, *merged}))

    @property
    def only_drops(self) -> bool:
        """Whether whole layers go and nothing else happens."""
        return all(isinstance(op, DropLayer) for op in canonical_ops(self.ops))

    @property
    def is_empty(self) -> bool:
        return not self.ops

    @property
    def digest(self) -> str:
        """SHA-256 of what the plan does to which weights: target and operations, not why or at what cost."""
        ops = sorted((op.model_dump(mode="json") for op in canonical_ops(self.ops)), key=jsonio.canonical)
        parts = {"target": self.target.model_dump(mode="json"), "ops": ops}
        return jsonio.digest(parts if self.tensors_digest is None else {**parts, "tensors": self.tensors_digest})

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
        parts = {layer for layer, _ in self.removed_sublayers}
        if taken := sorted({*self.removed_layers, *parts, *without_attention(self.ops)} & set(model.protected)):
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
        """The plan that removes `layers` (original ids) of `model`.

        Raises:
            PlanError: the model has no such layers, or would have none left.
        """
        return cls.of(model, [{"op": "drop_layer", "layer": int(layer)} for layer in sorted(layers)], **parts)

    @classmethod
    def of(
        cls,
        model: ModelInfo,
        ops: Sequence[Op | Mapping[str, Any]],
        tensors: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Plan:
        """The plan that does `ops` to `model`.

        Args:
            model: the dense model.
            ops: operations in any order.
            tensors: name → array or tensor, for operations that read some.
            parts: further fields: scores, budget, provenance, cost, kind.

        Raises:
            PlanError: operations that contradict each other, or a tensor that is missing or left over.
        """
        target = Target(model=model.name, revision=model.revision, n_layers=model.n_layers)
        try:
            found = tensors if isinstance(tensors, PlanTensors) else PlanTensors(tensors)
            return cls(target=target, ops=tuple(ops), tensors=found, **parts)  # type: ignore[arg-type]
        except ValidationError as error:
            raise PlanError(first_problem(error)) from error
        except ValueError as error:
            raise PlanError(str(error)) from error

    def with_tensors(self, tensors: Mapping[str, Any]) -> Plan:
        """The same plan holding its tensors.

        Raises:
            PlanError: they are not the ones that the plan was made with, or not those that its operations read.
        """
        found = tensors if isinstance(tensors, PlanTensors) else PlanTensors(tensors)
        if found.digest != self.tensors_digest:
            raise PlanError("these are not the tensors that the plan was made with: plan anew")
        whole = self.model_copy(update={"tensors": found})
        try:
            whole._check_tensors()
        except ValueError as error:  # the names in the JSON were changed
            raise PlanError(str(error)) from error
        return whole

    def need_tensors(self) -> PlanTensors:
        """The tensors, held here.

        Raises:
            PlanError: only their digest is known.
        """
        if self.tensors_digest is not None and not self.tensors:
            raise PlanError(
                "the plan's tensors are not at hand: load it from its file by Plan.load, or from a run folder by "
                "Store.whole_plan"
            )
        return self.tensors

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
        """Write the JSON, and before it, where there are tensors, a safetensors file of the same name beside it.

        Raises:
            StoreError: a file cannot be written.
            PlanError: the tensors are not at hand.
        """
        path = Path(path)
        if tensors := self.need_tensors():
            tensors.save(side_file(path))
        jsonio.write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            StoreError: a file is missing, or cannot be read.
            PlanError: no plan, or not the tensors that it was made with.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read plan {path}: {error}") from error
        plan = cls.from_json(text, source=str(path))
        if plan.tensors_digest is None:
            return plan
        return plan.with_tensors(PlanTensors.load(side_file(path), plan.tensors_digest))
