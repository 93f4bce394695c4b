"""All tasks of a suite on one model: checked before anything slow happens, asked in turn, each kept once finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import surgery
from prunebench.dataset import open_dataset
from prunebench.errors import BadParameter
from prunebench.evaluator import Evaluator, TaskResult
from prunebench.grid import RESULT_OPTIONS, plugin_version
from prunebench.suite_selection import limited, only_tasks, with_data, without_judged
from prunebench.suites import JUDGES, Suite, load_suite
from prunebench.task_files import TaskFiles, task_identity

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.config import Spec
    from prunebench.encoded import EncoderCache
    from prunebench.model_info import ModelInfo
    from prunebench.plan import Plan
    from prunebench.plugins import Plugins
    from prunebench.reporter import Reporter
    from prunebench.store import Store
    from prunebench.suites import Task

__all__ = ["SuiteRun", "is_suite_file", "judged_warnings", "open_evaluator", "selected", "suite_file"]


def is_suite_file(name: str, plugins: Plugins) -> bool:
    """Whether `name` is a file of one's own, not a registered suite."""
    return name not in plugins.registry("suites") and Path(name).suffix in (".yaml", ".yml")


def suite_file(name: str, plugins: Plugins) -> Path:
    """The file of the suite `name`: of a registered one, else `name` itself where it ends in .yaml or .yml.

    Raises:
        UnknownName: neither; names the nearest that is registered.
    """
    if is_suite_file(name, plugins):
        return Path(name).expanduser()
    return plugins.get("suites", name)


def selected(name: str, spec: Spec, plugins: Plugins) -> tuple[Suite, dict[str, str]]:
    """The suite `name` with what `spec` asks of it, judged tasks still in it, and the tasks that are not asked for.

    Raises:
        UnknownName: no such suite or task.
        BadParameter: data of one's own that are not there.
        EvaluationError: a suite file that cannot be used.
    """
    suite = load_suite(suite_file(name, plugins))
    suite = with_data(
        suite, spec.data, split_of=lambda task: plugins.get("evaluators", task.evaluator)().data_split(task)
    )
    suite, skipped = only_tasks(suite, spec.tasks)
    return limited(suite, spec.limit), skipped


def open_evaluator(name: str, spec: Spec, plugins: Plugins, encoder: EncoderCache | None = None) -> Evaluator:
    """A new evaluator with what it takes of batch size and encoder cache.

    Raises:
        UnknownName: no such evaluator.
    """
    evaluator = plugins.get("evaluators", name)()
    if hasattr(evaluator, "batch_size"):
        evaluator.batch_size = spec.batch_size
    if encoder is not None and hasattr(evaluator, "encoder"):
        evaluator.encoder = encoder
    return evaluator


class SuiteRun:
    """The tasks that a run asks, with their evaluators.

    Attributes:
        suite: the tasks that are asked.
        left_out: tasks of the suite file that are not → why.
        warnings: what every record of the run says of that.
        evaluators: by name.
        revisions: task id → what its evaluator says of its own data and code, where it says anything.
        asking: the task that is being asked, for the error of a cell that fails in it.

    Raises:
        PruneBenchError: a task that cannot be right, by its evaluator's `check`.
    """

    def __init__(
        self, name: str, spec: Spec, plugins: Plugins, store: Store, encoder: EncoderCache, reporter: Reporter
    ) -> None:
        self.spec, self.plugins, self.reporter = spec, plugins, reporter
        self.files = TaskFiles(store, reporter.warn)
        suite, skipped = selected(name, spec, plugins)
        self.suite, judged = without_judged(suite)
        self.left_out = {**skipped, **judged}
        self.warnings = judged_warnings(judged)
        for line in self.warnings:
            reporter.warn(line)
        self.evaluators: dict[str, Evaluator] = {}
        self.revisions: dict[str, str] = {}
        for task in self.suite.tasks:
            if task.evaluator not in self.evaluators:
                self.evaluators[task.evaluator] = open_evaluator(task.evaluator, spec, plugins, encoder)
            evaluator = self.evaluators[task.evaluator]
            evaluator.check(task)
            if revision := evaluator.revision(task):
                self.revisions[task.id] = revision
        self.asking: str | None = None
        self._datasets: dict[str, str] = {}

    def check_modalities(self, info: ModelInfo) -> None:
        """Refuse a suite that asks about what the model does not take.

        Raises:
            BadParameter: with all such tasks, and how to run the others.
        """
        wrong = [task for task in self.suite.tasks if task.modality not in info.modalities]
        if not wrong:
            return
        senses = ", ".join(dict.fromkeys(task.modality for task in wrong))
        rest = [task.id for task in self.suite.tasks if task not in wrong]
        way = f"run the others by {' '.join(f'--task {name}' for name in rest)}" if rest else "take another suite"
        raise BadParameter(
            f"suite {self.suite.name!r} asks about {senses}, {self.spec.model} takes {', '.join(info.modalities)}; "
            f"it lacks what {', '.join(task.id for task in wrong)} {'needs' if len(wrong) == 1 else 'need'}: {way}"
        )

    def evaluate(self, loaded: LoadedModel, plan: Plan, *, keep: bool = True) -> list[TaskResult]:
        """All tasks on the pruned model, which is whole again afterwards.

        Args:
            keep: write each finished task to the store, and take what an earlier run left there (not with `force`).
        """
        found: dict[str, TaskResult] = {}
        identities = self.identities(loaded, plan) if keep else {}
        if keep and not self.spec.force:
            read = {name: self.files.read(identity) for name, identity in identities.items()}
            found = {name: result for name, result in read.items() if result is not None}
        if found:
            self.reporter.note(f"  answered before and kept: {', '.join(found)}")
        missing = [task for task in self.suite.tasks if task.id not in found]
        if missing:
            with surgery.pruned(loaded, plan):
                for task in missing:
                    self.asking = task.id
                    found[task.id] = self._ask(loaded, task)
                    if keep:
                        self.files.write(identities[task.id], found[task.id])
                    self.asking = None
        return [found[task.id] for task in self.suite.tasks]

    def _ask(self, loaded: LoadedModel, task: Task) -> TaskResult:
        with self.reporter.bar(f"  {task.id}", task.count) as advance:
            result = self.evaluators[task.evaluator].evaluate(loaded, task, advance)
        for line in result.warnings:
            self.reporter.warn(f"{task.id}: {line}")
        # What a task weighs is the suite's affair, not its evaluator's.
        return result if result.weight == task.weight else result.model_copy(update={"weight": task.weight})

    def forget(self, loaded: LoadedModel, plan: Plan) -> None:
        """Remove the task files of a plan whose record is written."""
        self.files.remove(self.identities(loaded, plan).values())

    def identities(self, loaded: LoadedModel, plan: Plan) -> dict[str, dict[str, Any]]:
        """What the answers of each task depend on, by task id."""
        loading = {name: getattr(self.spec, name) for name in RESULT_OPTIONS if getattr(self.spec, name)}
        return {
            task.id: task_identity(
                loaded.info,
                plan,
                task,
                loading=loading,
                device=loaded.device.type,
                evaluator_version=plugin_version(self.plugins, "evaluators", task.evaluator),
                dataset_revision=self._dataset_revision(task),
                task_revision=self.revisions.get(task.id, ""),
            )
            for task in self.suite.tasks
        }

    def _dataset_revision(self, task: Task) -> str | None:
        if task.dataset is not None and task.dataset not in self._datasets:
            self._datasets[task.dataset] = open_dataset(self.plugins, task.dataset).revision
        return self._datasets.get(task.dataset or "")


def judged_warnings(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each judge whose tasks are left out: which tasks, and how to have them."""
    lines = []
    for judge, key in JUDGES.items():
        if tasks := [task for task, why in left_out.items() if why == f"judge {judge}"]:
            one = len(tasks) == 1
            lines.append(
                f"left out: {', '.join(tasks)} ({'its' if one else 'their'} answers are scored by {judge}); "
                f"set {key} to include {'it' if one else 'them'}"
            )
    return tuple(lines)
