"""The conformance kit: does a strategy, an adapter, a dataset or an evaluator keep its contract?

From a shell: ``prunebench check NAME`` or ``prunebench check my_method.py``. From pytest, one test for each check::

    @pytest.mark.parametrize("check", strategy_checks(MyStrategy))
    def test_conformance(check):
        check()

The kit needs nothing but the installed package: it carries tiny random models of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunebench.adapter import LoadedModel, LoadOptions, ModelAdapter
from prunebench.dataset import Dataset
from prunebench.evaluator import Evaluator
from prunebench.strategy import Strategy
from prunebench.suites import Task
from prunebench.testing.bench import Bench, tiny_benches
from prunebench.testing.report import Check, Failed, Report, Result, Skipped, run_checks

__all__ = [
    "Bench",
    "Check",
    "Failed",
    "Report",
    "Result",
    "Skipped",
    "adapter_checks",
    "check_adapter",
    "check_dataset",
    "check_evaluator",
    "check_strategy",
    "check_suite",
    "dataset_checks",
    "evaluator_checks",
    "strategy_checks",
    "tiny_benches",
]


def strategy_checks(
    cls: type[Strategy], benches: Iterable[Bench] | None = None, params: Mapping[str, Any] | None = None
) -> list[Check]:
    """Every check of a strategy, to be called one by one.

    Args:
        cls: the class.
        benches: models to plan on; the kit's tiny ones by default.
        params: hyper-parameters that are not the defaults.
    """
    from prunebench.testing.plans import ON_MODEL, StrategyCase
    from prunebench.testing.strategies import OF_CLASS
    from prunebench.testing.thinning import ON_THINNED, thins

    found = OF_CLASS.bind(StrategyCase(cls, params=params))
    for bench in tiny_benches() if benches is None else benches:
        case = StrategyCase(cls, bench, params)
        found += ON_MODEL.bind(case, on=bench.name)
        found += ON_THINNED.bind(case, on=bench.name) if thins(case) else []
    return found


def check_strategy(
    cls: type[Strategy], benches: Iterable[Bench] | None = None, params: Mapping[str, Any] | None = None
) -> Report:
    """Run every check of a strategy; arguments as `strategy_checks`."""
    name = getattr(cls, "name", None) or cls.__name__
    return run_checks("strategy", str(name), strategy_checks(cls, benches, params))


def adapter_checks(
    adapter: type[ModelAdapter] | ModelAdapter,
    loaded: LoadedModel | None = None,
    options: LoadOptions | None = None,
    dataset: Dataset | None = None,
    load: bool = True,
) -> list[Check]:
    """Every check of an adapter, to be called one by one.

    Args:
        adapter: the class, or the instance that loaded `loaded`.
        loaded: a model that is there already; None loads it with `options`.
        options: for `load`.
        dataset: where samples come from; by default the adapter's own calibration data, and the kit's noise for a
            modality that it lacks.
        load: False checks the class alone and leaves the rest out.
    """
    from prunebench.testing.adapter_case import AdapterCase
    from prunebench.testing.adapters import ON_LOADING
    from prunebench.testing.encoding import ON_DENSE
    from prunebench.testing.pruning import ON_PRUNED

    case = AdapterCase(adapter, options, loaded, dataset, load)
    return [*ON_LOADING.bind(case), *ON_DENSE.bind(case), *ON_PRUNED.bind(case)]


def check_adapter(
    adapter: type[ModelAdapter] | ModelAdapter,
    loaded: LoadedModel | None = None,
    options: LoadOptions | None = None,
    dataset: Dataset | None = None,
    load: bool = True,
) -> Report:
    """Run every check of an adapter; arguments as `adapter_checks`."""
    name = getattr(adapter, "name", None) or type(adapter).__name__
    return run_checks("model", str(name), adapter_checks(adapter, loaded, options, dataset, load))


def dataset_checks(dataset: type[Dataset] | Dataset) -> list[Check]:
    """Every check of a dataset: a class, or an instance that was opened with a reference."""
    from prunebench.testing.datasets import ON_DATASET, DatasetCase

    return ON_DATASET.bind(DatasetCase(dataset))


def check_dataset(dataset: type[Dataset] | Dataset) -> Report:
    """Run every check of a dataset; arguments as `dataset_checks`."""
    name = getattr(dataset, "name", None) or type(dataset).__name__
    return run_checks("dataset", str(name), dataset_checks(dataset))


def evaluator_checks(cls: type[Evaluator], task: Task | None = None, loaded: LoadedModel | None = None) -> list[Check]:
    """Every check of an evaluator, to be called one by one.

    Args:
        cls: the class; it is built without arguments.
        task: what it evaluates; by default two questions of a registered model's default suite that uses it.
        loaded: on which model; by default that one.
    """
    from prunebench.testing.evaluators import ON_EVALUATOR, EvaluatorCase

    return ON_EVALUATOR.bind(EvaluatorCase(cls, task, loaded))


def check_evaluator(cls: type[Evaluator], task: Task | None = None, loaded: LoadedModel | None = None) -> Report:
    """Run every check of an evaluator; arguments as `evaluator_checks`."""
    name = getattr(cls, "name", None) or cls.__name__
    return run_checks("evaluator", str(name), evaluator_checks(cls, task, loaded))


def check_suite(path: Path) -> Report:
    """Check that a suite file reads, and that the evaluators and datasets that it names are there."""
    from prunebench.testing.suites import ON_SUITE, SuiteCase

    return run_checks("suite", Path(path).stem, ON_SUITE.bind(SuiteCase(Path(path))))
