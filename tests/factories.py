"""Records made by hand, for tests of everything that reads them. No model is involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.budget import Budget, BudgetReport, achieved
from prunebench.config import CalibrationSpec, Cell
from prunebench.evaluator import TaskResult
from prunebench.model_info import LayerCost, ModelInfo
from prunebench.ops import Mask, Slice
from prunebench.plan import Plan, PlanCost, Provenance, Target
from prunebench.store import Latency, Memory, Phase, Record

CALIBRATION = CalibrationSpec(dataset="shapes-calibration", n=64, seed=3)


def make_model(n_layers: int = 8, name: str = "toy", planted: dict[str, tuple[int, ...]] | None = None) -> ModelInfo:
    """A model of 8 equal layers of 100 parameters: 1,000 in the language model, 2,000 in all."""
    layer = LayerCost(params=100, bytes=400, prefill_flops=1000.0, kv_bytes_per_token=16)
    lm = 100 * n_layers + 200
    return ModelInfo(
        name=name,
        adapter="toy",
        revision="0123456789abcdef",
        n_layers=n_layers,
        hidden_size=4,
        dtype="float32",
        layers=(layer,) * n_layers,
        lm_params=lm,
        model_params=lm + 1000,
        model_bytes=4 * (lm + 1000),
        lm_prefill_flops=1000.0 * n_layers,
        kv_bytes_per_token=16 * n_layers,
        reference_tokens=10,
        planted_roles=planted,
    )


def make_task(name: str, right: int, n: int = 100, **changes: Any) -> TaskResult:
    """`right` of `n` questions answered right, the first ones; chance 0.25, majority 0.3."""
    values: dict[str, Any] = {
        "task": name,
        "metric": "exact_match",
        "n": n,
        "score": right / n,
        "ci_low": max(0.0, right / n - 0.1),
        "ci_high": min(1.0, right / n + 0.1),
        "ci_method": "wilson",
        "chance": 0.25,
        "majority": 0.3,
        "ids": tuple(f"{name}-{i}" for i in range(n)),
        "scores": tuple(1.0 if i < right else 0.0 for i in range(n)),
    }
    return TaskResult(**{**values, **changes})


def make_record(
    strategy: str = "alpha",
    layers: Sequence[int] = (2, 3),
    right: Mapping[str, int] | None = None,
    *,
    tasks: Sequence[TaskResult] | None = None,
    model: ModelInfo | None = None,
    params: dict[str, Any] | None = None,
    budget: Budget | None = None,
    calibration: CalibrationSpec | None = None,
    status: str = "ok",
    error: str | None = None,
    cell: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A record of `strategy` removing `layers`; `right` gives the number of right answers of 100 by task."""
    model = model or make_model()
    budget = budget or Budget(value=len(layers), unit="layers")
    values: dict[str, Any] = {
        "model": model.name,
        "model_revision": model.revision,
        "dtype": "float32",
        "strategy": strategy,
        "strategy_params": params or {},
        "strategy_version": "1",
        "budget": budget,
        "suite": "toy-suite",
        "suite_digest": "fedcba9876543210",
        "calibration": calibration,
        "calibration_revision": "rev-1" if calibration else "",
    }
    made = Cell(**{**values, **(cell or {})})
    plan = Plan.drop(
        model,
        layers,
        budget=BudgetReport(asked=budget, layers_asked=len(layers), achieved=achieved(model, layers)),
        provenance=Provenance(strategy=strategy, params={"unused": 1, **(params or {})}),
        cost=PlanCost(calibration_seconds=4.0, search_seconds=0.5),
    )
    results = tasks if tasks is not None else [make_task(name, count) for name, count in (right or {}).items()]
    return Record(
        **{
            "id": made.id,
            "cell": made,
            "status": status,
            "error": error,
            "model": model,
            "plan": plan if status == "ok" else None,
            "tasks": tuple(results),
            "environment": {"prunebench": "0.1.0", "torch": "2.9.0", "transformers": "5.17.0", "machine": "Test CPU"},
            "started": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T03:05:05+00:00",
            **changes,
        }
    )


def make_dense(right: Mapping[str, int], **changes: Any) -> Record:
    """The record of the model as it is."""
    return make_record("dense", (), right, budget=Budget(value=0.0), **changes)


def make_latency(dense: float = 30.0, pruned: float = 20.0) -> Latency:
    """Every phase took `dense` and `pruned` milliseconds."""
    phase = Phase(median=pruned, p10=pruned, p90=pruned, dense_median=dense, dense_p10=dense, dense_p90=dense, n=7)
    return Latency(
        device="cpu",
        clock="perf_counter",
        batch_size=1,
        prompt_tokens=40,
        new_tokens=16,
        encoder=phase,
        prefill=phase,
        decode=phase,
        end_to_end=phase,
    )


def make_memory(weights: int = 6144, dense: int = 8192) -> Memory:
    """Sizes in bytes; what a CPU cannot tell is None."""
    return Memory(weights=weights, dense_weights=dense, kv_bytes_per_token=96)


def make_stored(plain: float, compressed: float | None = None, dense: int = 8000) -> Memory:
    """Sizes on disk as shares of the dense model's bytes; all of its values are there as floats."""
    stored = round(plain * dense)
    small = None if compressed is None else round(compressed * dense)
    return Memory(
        weights=stored,
        dense_weights=dense,
        kv_bytes_per_token=128,
        stored=stored,
        stored_compressed=small,
        dense_stored=dense,
    )


def make_thinned(
    strategy: str = "thin",
    share: float = 0.5,
    right: Mapping[str, int] | None = None,
    *,
    kind: str = "weights",
    **changes: Any,
) -> Record:
    """A record of `strategy` zeroing `share` of the 800 parameters of the toy model's decoder layers."""
    model, budget = make_model(), Budget(value=share)
    zeros = round(100 * share)
    pattern = "unstructured" if kind == "weights" else kind
    ops = tuple(Mask(layer=layer, tensors=f"m{layer}", zeros=zeros, pattern=pattern) for layer in range(8))
    if kind != "weights":
        changes = {"params": {"pattern": kind}, **changes}
    return _of_kind(
        strategy, model, budget, ops, right, kind, {"memory": make_stored(1.0, 1.0 - 0.3 * share), **changes}
    )


def make_narrow(
    strategy: str = "narrow",
    share: float = 0.5,
    right: Mapping[str, int] | None = None,
    *,
    kept: tuple[int, int] = (2, 30),
    **changes: Any,
) -> Record:
    """A record of `strategy` removing `share` of each decoder layer, down to `kept` of 4 heads and 60 channels."""
    from prunebench.model_info import Cost

    part = Cost(params=50, bytes=200, prefill_flops=500.0, kv_bytes_per_token=8)
    plain = make_model()
    layers = tuple(layer.model_copy(update={"attention": part, "mlp": part}) for layer in plain.layers)
    model, budget = plain.model_copy(update={"layers": layers}), Budget(value=share)
    gone, (heads, channels) = round(100 * share), kept
    ops = tuple(
        Slice(layer=i, tensors=f"s{i}", heads=(heads, 4), channels=(channels, 60), params_removed=gone)
        for i in range(8)
    )
    size = make_stored(1.0 - 0.4 * share, 1.0 - 0.4 * share)
    return _of_kind(strategy, model, budget, ops, right, "width", {"memory": size, **changes})


def _of_kind(
    strategy: str,
    model: ModelInfo,
    budget: Budget,
    ops: Sequence[Any],
    right: Mapping[str, int] | None,
    kind: str,
    changes: dict[str, Any],
) -> Record:
    """With a plan whose tensors lie elsewhere, as it is in a record that was read."""
    plan = Plan(
        target=Target(model=model.name, revision=model.revision, n_layers=model.n_layers),
        ops=tuple(ops),
        tensors_digest="d" * 64,
        kind=kind,
        budget=BudgetReport(asked=budget, layers_asked=0, achieved=achieved(model, ops=ops)),
        provenance=Provenance(strategy=strategy, params=changes.get("params") or {}),
        cost=PlanCost(search_seconds=0.5, forward_passes=64, backward_passes=8, peak_memory=3 * 2**20),
    )
    given = {"plan": plan} if changes.get("status", "ok") == "ok" else {"plan": None}
    return make_record(strategy, (), right, budget=budget, kind=kind, **{**given, **changes})
