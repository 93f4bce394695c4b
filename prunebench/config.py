"""What a run is: the spec that a user gives, and the cells that it unfolds into.

A cell's id is the hash of the canonical JSON of everything that changes its result, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from prunebench import jsonio
from prunebench.budget import Budget
from prunebench.errors import BadParameter, UnknownName, UsageError
from prunebench.plan import first_problem
from prunebench.plan_parts import without_default
from prunebench.recovery.spec import NAMES as RECOVERIES
from prunebench.recovery.spec import PREFIX as RECOVERY_PREFIX
from prunebench.recovery.spec import Recovery, parse_recovery
from prunebench.yaml_files import read_mapping

__all__ = ["CalibrationSpec", "Cell", "Spec", "parse_params", "split_params"]

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationSpec(_Strict):
    """Which samples go through the dense model."""

    dataset: str
    n: int = Field(default=512, ge=1)
    seed: int = 0
    domain: str | None = None
    split: str = "calibration"


class LatencySpec(_Strict):
    """How latency is measured."""

    enabled: bool = True
    batch_size: int = Field(default=1, ge=1)
    new_tokens: int = Field(default=16, ge=2)
    warmup: int = Field(default=2, ge=0)
    rounds: int = Field(default=7, ge=1)


class Cell(_Strict):
    """One model × strategy × budget × suite × seed: the unit that runs, fails, is skipped and is recorded."""

    schema_version: int = SCHEMA_VERSION
    model: str
    model_revision: str
    dtype: str
    loading: dict[str, Any] = Field(default_factory=dict, description="options that change the numbers, where set")
    strategy: str
    strategy_params: dict[str, Any] = Field(default_factory=dict)
    strategy_version: str = ""
    budget: Budget
    seed: int = 0
    suite: str
    suite_digest: str
    left_out: dict[str, str] = Field(default_factory=dict, description="tasks of the suite that were not run → why")
    limit: int | None = None
    calibration: CalibrationSpec | None = Field(default=None, description="None for strategies that need no statistics")
    calibration_revision: str = ""
    latency: LatencySpec = LatencySpec()
    recovery: Recovery | None = Field(default=None, description="what is done to the pruned model before it is judged")

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and says nothing: such a cell reads as it always did."""
        return without_default(self, handler(self), "recovery", "left_out")

    @property
    def id(self) -> str:
        """16 hex digits of SHA-256 over the canonical JSON of this cell.

        Fields at their default are left out, so that a field added later does not orphan the records there are; for the
        same reason a default never changes its meaning without a new schema version.
        """
        said = self.model_dump(mode="json", exclude_defaults=True)
        return jsonio.digest({**said, "schema_version": self.schema_version})[:16]

    @property
    def label(self) -> str:
        seed = f" seed {self.seed}" if self.seed else ""
        after = f", recovery {self.recovery.label}" if self.recovery is not None else ""
        return f"{self.strategy}{seed} at {self.budget}{after}"


class Spec(_Strict):
    """A run as a user asks for it: a small grid over strategies and budgets on one model."""

    model: str
    model_path: str | None = None
    model_revision: str | None = Field(default=None, description="hub commit, branch or tag")
    device_map: str | None = Field(default=None, description="accelerate's placement over several devices")
    offload_folder: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    strategies: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    params: dict[str, str] = Field(default_factory=dict, description="`k` or `topo.k` → text, typed by the strategy")
    suite: str | None = None
    tasks: tuple[str, ...] = Field(default=(), description="only these tasks of the suite; none takes all")
    data: dict[str, str] = Field(
        default_factory=dict, description="`task`, `task:split` or `task:media` → file or folder of one's own"
    )
    limit: int | None = Field(default=None, ge=1, description="questions per task; None takes all")
    controls: bool = False
    seeds: int = Field(default=5, ge=1, description="draws of each stochastic strategy")
    seed: int = 0
    calibration: str | None = None
    n_calibration: int = Field(default=512, ge=1)
    calibration_seed: int = 0
    calibration_domain: str | None = None
    recover: tuple[str, ...] = Field(default=(), description="none, replaceme, layer, layer:ffn, layer:linear, tune")
    recover_tokens: int | None = Field(default=None, ge=1, description="training budget; None takes one epoch")
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = Field(default=32, ge=1)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; None lets the run decide")
    encode_cache: int = Field(default=2 << 30, ge=0, description="bytes of encoder outputs kept on disk, or 500M, 4G")
    latency: LatencySpec = LatencySpec()
    executor: str = "local"
    out: Path = Path("runs")
    force: bool = False
    remeasure: bool = False

    @field_validator("encode_cache", mode="before")
    @classmethod
    def _size(cls, value: Any) -> int:
        from prunebench.encoded import parse_size

        try:
            return parse_size(value)
        except BadParameter as error:
            raise ValueError(str(error)) from error

    @field_validator("recover", mode="before")
    @classmethod
    def _one_recovery(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def recoveries(self) -> tuple[Recovery | None, ...]:
        """What each pruned model gets, one cell for each; None is nothing.

        Raises:
            UnknownName: a recovery, or a parameter of one, that does not exist.
            BadParameter: a value that does not fit.
            UsageError: a budget or a parameter that nothing takes.
        """
        marker = f"{RECOVERY_PREFIX}."
        params = {key[len(marker) :]: value for key, value in self.params.items() if key.startswith(marker)}
        found = [parse_recovery(name, self.recover_tokens, params) for name in self.recover or ("none",)]
        trained = any(recovery is not None and recovery.trained for recovery in found)
        if self.recover_tokens is not None and not trained:
            raise UsageError("--recover-tokens is a budget for training: add --recover tune or --recover layer")
        if params and not any(found):
            raise UsageError(f"-P {marker}{next(iter(params))} needs --recover with one of {', '.join(RECOVERIES[1:])}")
        return tuple(dict.fromkeys(found))

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "options") -> Spec:
        """A spec from plain values; an unknown key is met with the nearest real one.

        Raises:
            UnknownName, UsageError, BudgetError
        """
        for key in values:
            if key not in cls.model_fields:
                raise UnknownName(f"key in {source}", str(key), cls.model_fields)
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError(f"{source}: {first_problem(error)}") from error

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Spec:
        """A spec from a YAML file, overridden by what the command line says."""
        values = read_mapping(path, "`key: value` lines", empty=True)
        if "sparsity" in values:
            raw = values.pop("sparsity")
            try:
                values["budgets"] = [Budget(value=float(v)) for v in (raw if isinstance(raw, list) else [raw])]
            except (TypeError, ValueError) as error:
                raise UsageError(f"{path}: sparsity must be a number or a list of numbers, got {raw!r}") from error
        if isinstance(values.get("params"), dict):  # `k: 25` is as good as `k: "25"`: the strategy gives it its type
            values["params"] = {str(key): str(value) for key, value in values["params"].items()}
        return cls.build({**values, **(overrides or {})}, source=str(path))


def parse_params(pairs: Iterable[str]) -> dict[str, str]:
    """``["k=25", "topo.alpha=2"]`` → ``{"k": "25", "topo.alpha": "2"}``."""
    params: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise BadParameter(f"-P wants name=value, got {pair!r}: for example -P k=25")
        params[name.strip()] = value.strip()
    return params


def split_params(params: Mapping[str, str], strategies: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Hand each parameter to the strategies that it is for.

    ``topo.k`` goes to ``topo`` alone; ``k`` goes to every strategy of the run that has a ``k``.

    Args:
        params: as from `parse_params`.
        strategies: strategy name → its parameter names.

    Raises:
        UnknownName: a parameter that no strategy of the run has.
    """
    result: dict[str, dict[str, str]] = {name: {} for name in strategies}
    scoped: dict[str, dict[str, str]] = {name: {} for name in strategies}
    for key, value in params.items():
        owner, dot, name = key.partition(".")
        if dot:
            if owner not in strategies:
                raise UnknownName(f"strategy in -P {key}", owner, strategies)
            scoped[owner][name] = value  # an unknown name is reported by the strategy itself
            continue
        takers = [strategy for strategy, names in strategies.items() if key in set(names)]
        if not takers:
            known = sorted({name for names in strategies.values() for name in names})
            raise UnknownName(f"parameter of {', '.join(strategies)}", key, known)
        for strategy in takers:
            result[strategy][key] = value
    return {name: {**result[name], **scoped[name]} for name in strategies}
