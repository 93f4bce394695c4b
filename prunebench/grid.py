"""What a spec unfolds into: the strategies with their parameters, and the cells over budgets and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prunebench.budget import Budget
from prunebench.comparison import DENSE
from prunebench.config import CalibrationSpec, Cell, Spec, split_params
from prunebench.dataset import Dataset, open_dataset
from prunebench.environment import package_version
from prunebench.kinds import removes_layers
from prunebench.model_info import ModelInfo
from prunebench.plugins import Plugins
from prunebench.recovery.spec import PREFIX, Recovery, dense_recoveries
from prunebench.strategy import Strategy, strategy_params
from prunebench.suites import Suite

__all__ = [
    "ALL",
    "Job",
    "build_cells",
    "build_strategies",
    "calibration_spec",
    "every_strategy",
    "plugin_version",
    "reads_samples",
]


ALL = "all"
"""Stands for every strategy where one is named."""

RESULT_OPTIONS = ("attn_implementation", "trust_remote_code")
"""Loading options that can change a result; where layers are placed cannot."""


@dataclass(frozen=True)
class Job:
    """A cell with the strategy that plans it."""

    cell: Cell
    strategy: Strategy


def build_strategies(spec: Spec, plugins: Plugins) -> dict[str, Strategy]:
    """The strategies that a spec names, controls included where asked for, with their parameters set.

    Parameters go to the strategies that were named, not to controls that came along.

    Raises:
        UnknownName, BadParameter: a strategy or parameter that does not exist, or a value that does not fit.
    """
    every = every_strategy(plugins, spec.params) if ALL in spec.strategies else []
    spelled = [name for given in spec.strategies for name in (every if given == ALL else [given])]
    named = [name for name in dict.fromkeys(spelled) if name != DENSE]
    aliases = {name: plugins.get("strategies", name).name for name in named}
    asked = list(dict.fromkeys(aliases.values()))
    names = list(asked)
    if spec.controls:
        known = [entry.value for entry in plugins.registry("strategies").values()]
        names = list(dict.fromkeys([*names, *(cls.name for cls in known if cls.control)]))
    classes = {name: plugins.get("strategies", name) for name in names}
    given = {}
    for key, value in spec.params.items():
        owner, dot, parameter = key.partition(".")
        if dot and owner == PREFIX:
            continue  # of the recovery: `Spec.recoveries`
        given[f"{aliases.get(owner, owner)}.{parameter}" if dot else key] = value
    params = split_params(given, {name: list(strategy_params(classes[name])) for name in asked or names})
    return {name: cls.from_params(params.get(name)) for name, cls in classes.items()}


def every_strategy(plugins: Plugins, params: Iterable[str] = ()) -> list[str]:
    """Names of all strategies that ``--strategy all`` stands for, in the order of their registration.

    Those that say ``in_all = False`` are left out, unless one of `params` (as ``fuse.scores``) is for them.
    """
    named = {key.partition(".")[0] for key in params if "." in key}
    known = dict.fromkeys(entry.value for entry in plugins.registry("strategies").values())
    return [cls.name for cls in known if cls.in_all or named & {cls.name, *cls.aliases}]


def calibration_spec(spec: Spec, dataset: Dataset) -> CalibrationSpec:
    """Which samples of `dataset` calibrate this run."""
    return CalibrationSpec(
        dataset=dataset.label, n=spec.n_calibration, seed=spec.calibration_seed, domain=spec.calibration_domain
    )


def reads_samples(strategy: Strategy) -> bool:
    """Whether its plans depend on the calibration samples: by statistics, or by what the model makes of them."""
    return bool(strategy.requires()) or (strategy.needs_model and not strategy.weights_only)


def build_cells(
    spec: Spec,
    plugins: Plugins,
    strategies: dict[str, Strategy],
    info: ModelInfo,
    suite: Suite,
    dataset: Dataset | None,
    revisions: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> list[Job]:
    """The grid: dense, then every strategy at every budget and seed.

    Args:
        revisions: what evaluators say of the tasks' own data and code (`Evaluator.revision`), by task.
        left_out: tasks of the suite that are not run → why.

    Raises:
        BudgetError: a budget that no model of this depth can meet; said before anything runs.
    """
    datasets = {task.dataset: open_dataset(plugins, task.dataset).revision for task in suite.tasks if task.dataset}
    own = {f"task {task}": revision for task, revision in (revisions or {}).items()}
    suite_digest = suite.digest({**datasets, **own})

    def job(strategy: Strategy, budget: Budget, seed: int, recovery: Recovery | None = None) -> Job:
        defaults = type(strategy)().params()
        reads = dataset if reads_samples(strategy) or recovery is not None else None
        cell = Cell(
            model=info.name,
            model_revision=info.revision,
            dtype=info.dtype,
            loading={name: getattr(spec, name) for name in RESULT_OPTIONS if getattr(spec, name)},
            strategy=strategy.name,
            strategy_params={name: value for name, value in strategy.params().items() if value != defaults[name]},
            strategy_version=_version(strategy, plugins),
            budget=budget,
            seed=seed,
            suite=suite.name,
            suite_digest=suite_digest,
            left_out=dict(left_out or {}),
            limit=spec.limit,
            calibration=calibration_spec(spec, reads) if reads else None,
            calibration_revision=reads.revision if reads else "",
            latency=spec.latency,
            recovery=recovery,
        )
        return Job(cell, strategy)

    dense, recoveries = plugins.get("strategies", DENSE)(), spec.recoveries()
    jobs = [job(dense, Budget(value=0.0), spec.seed)]
    # Training does the dense model good too: what pruning costs is seen only beside a dense row of the same budget.
    jobs += [job(dense, Budget(value=0.0), spec.seed, recovery) for recovery in dense_recoveries(recoveries)]
    for budget in spec.budgets:
        if any(removes_layers(strategy.plan_kind) for strategy in strategies.values()):
            budget.layers_asked(info.n_layers)
        for recovery in recoveries:
            for strategy in strategies.values():
                seeds = range(spec.seeds) if strategy.stochastic else (0,)
                jobs += [job(strategy, budget, spec.seed + offset, recovery) for offset in seeds]
    return jobs


def _version(strategy: Strategy, plugins: Plugins) -> str:
    return plugin_version(plugins, "strategies", strategy.name)


def plugin_version(plugins: Plugins, kind: str, name: str) -> str:
    """Version of the plugin that registered `name`; empty where it has none and PruneBench is not installed."""
    owner = plugins.registry(kind)[name].plugin
    return plugins.infos[owner].version or package_version("prunebench") or ""
