"""What an evaluator has to keep to: a result per question, the same one again, and an unchanged model."""

from __future__ import annotations

from functools import cached_property

from prunebench.adapter import LoadedModel
from prunebench.errors import MissingExtra, PruneBenchError, typed_line
from prunebench.evaluator import Evaluator, Need, TaskResult
from prunebench.suites import Task
from prunebench.testing.report import Checklist, Failed, Skipped
from prunebench.testing.state import ModelState

__all__ = ["ON_EVALUATOR", "EvaluatorCase"]

ON_EVALUATOR = Checklist()
QUESTIONS = 2
STATUSES = ("ok", "missing", "warning")


class EvaluatorCase:
    """An evaluator class, a task that it can evaluate, and a model.

    Args:
        cls: the class.
        task: None takes the first one that a registered suite has for this evaluator, cut to two questions: of a
            model's default suite, else of any suite, where its questions come from a registered dataset.
        loaded: None loads a registered model that fits.
    """

    def __init__(self, cls: type[Evaluator], task: Task | None = None, loaded: LoadedModel | None = None) -> None:
        self.cls, self._task, self._loaded = cls, task, loaded

    @cached_property
    def setting(self) -> tuple[Task, LoadedModel]:
        if self._task is not None and self._loaded is not None:
            return self._task, self._loaded
        from prunebench.plugins import get_plugins
        from prunebench.suites import load_suite

        plugins = get_plugins()
        suites = {}
        for name, entry in plugins.registry("suites").items():
            try:
                tasks = load_suite(entry.value).tasks
            except PruneBenchError:  # that is the suite's fault
                continue
            suites[name] = [task for task in tasks if task.evaluator == self.cls.name]
        # First those of one model, which come with it; an adapter of many would have to fetch one.
        models = sorted(plugins.registry("models").values(), key=lambda entry: entry.value.takes_reference)
        pairs = [(entry.value, suites.get(entry.value.default_suite or "", [])) for entry in models]
        here = [task for tasks in suites.values() for task in tasks if task.dataset]
        own = [entry.value for entry in models if not entry.value.takes_reference]
        pairs += [(cls, [task for task in here if task.modality in cls.modalities]) for cls in own]
        for cls, tasks in pairs:
            if not tasks:
                continue
            try:
                loaded = self._loaded or cls().load()
            except PruneBenchError:  # its weights are not here
                continue
            return self._task or tasks[0].model_copy(update={"n": QUESTIONS}), loaded
        raise Skipped("no model that is here fits a suite's task for it: call check_evaluator(cls, task, loaded)")

    def run(self) -> TaskResult:
        task, loaded = self.setting
        try:
            evaluator = self.cls()
            evaluator.check(task)
        except MissingExtra as error:
            raise Skipped(str(error)) from error
        result = evaluator.evaluate(loaded, task)
        if not isinstance(result, TaskResult):
            raise Failed(f"evaluate() returned {type(result).__name__}: return a TaskResult")
        return result

    @cached_property
    def result(self) -> TaskResult:
        return self.run()


@ON_EVALUATOR
def docstring(case: EvaluatorCase) -> None:
    """The docstring says how questions are asked and scored."""
    if not (vars(case.cls).get("__doc__") or "").strip():
        raise Failed(f"{case.cls.__name__} has no docstring: say how questions are asked and scored")


@ON_EVALUATOR
def result(case: EvaluatorCase) -> None:
    """The result is of the task, with an id, a score and an answer for each question, and as many of all it lists."""
    task, found = case.setting[0], case.result
    if found.task != task.id:
        raise Failed(f"the result is of task {found.task!r}, {task.id!r} was asked")
    for name in ("ids", "scores", "answers", "clusters", "verdicts"):
        values = getattr(found, name)
        if values and len(values) != found.n:
            raise Failed(f"{len(values)} {name} for n = {found.n} questions")
    if not found.ids or not found.scores:
        raise Failed("no ids or no scores: two plans can be compared question by question only with both")
    if len(set(found.ids)) != len(found.ids):
        raise Failed("an id stands twice")


@ON_EVALUATOR
def beforehand(case: EvaluatorCase) -> None:
    """check lets the task pass, needs() gives Needs; revision and data_split are texts, the same ones twice."""
    task = case.setting[0]
    said = []
    for _ in range(2):
        try:
            evaluator = case.cls()
            evaluator.check(task)
        except MissingExtra as error:
            raise Skipped(str(error)) from error
        for need in evaluator.needs(task):
            if not isinstance(need, Need) or need.status not in STATUSES:
                raise Failed(f"needs() gives {need!r}: give Needs with status {', '.join(STATUSES)}")
        texts = {"revision": evaluator.revision(task), "data_split": evaluator.data_split(task)}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise Failed(f"{name}() gives {text!r}: give a text")
        said.append(texts)
    if said[0] != said[1]:
        raise Failed("a second evaluator says something else: revision is part of every result's identity")


@ON_EVALUATOR
def interval(case: EvaluatorCase) -> None:
    """The score lies in its interval, and says how that was made."""
    found = case.result
    if not found.ci_low <= found.score <= found.ci_high:
        raise Failed(f"the score {found.score:g} is outside its interval [{found.ci_low:g}, {found.ci_high:g}]")
    if not found.ci_method:
        raise Failed("ci_method is empty: say how the interval was made")


@ON_EVALUATOR
def determinism(case: EvaluatorCase) -> None:
    """A second evaluator gives the same scores and answers."""
    again = case.run()
    if (again.score, again.scores, again.answers) != (case.result.score, case.result.scores, case.result.answers):
        raise Failed("a second evaluation gives other scores or answers: decode greedily and seed every draw")


@ON_EVALUATOR
def model_untouched(case: EvaluatorCase) -> None:
    """evaluate() leaves the model as it was."""
    before = ModelState.of(case.setting[1])
    case.run()
    if change := before.change(ModelState.of(case.setting[1])):
        raise Failed(f"evaluate() changed {change}: leave the model as it was")


@ON_EVALUATOR
def unknown_metric(case: EvaluatorCase) -> None:
    """A metric that does not exist is refused in one line."""
    task, loaded = case.setting
    try:
        case.cls().evaluate(loaded, task.model_copy(update={"metric": "no-such-metric"}))
    except PruneBenchError:
        return
    except Exception as error:
        raise Failed(f"an unknown metric raises {typed_line(error)}: raise EvaluationError") from error
    raise Failed("metric='no-such-metric' was evaluated: raise EvaluationError")
