"""One task, one `simple_evaluate`: the live model in, lmms-eval's results and samples out."""

from __future__ import annotations

import os
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import EvaluationError, PruneBenchError, typed_line
from prunebench_lmms_eval.compat import need_lmms_eval
from prunebench_lmms_eval.host import Host
from prunebench_lmms_eval.switches import offline

if TYPE_CHECKING:
    from prunebench.suites import Task

__all__ = ["Outcome", "root_cause", "run_task"]

SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
PROFILE = "default"


@dataclass
class Outcome:
    """What lmms-eval made of one task.

    Attributes:
        name: what was run (`override.write_override` gave it): a key of `results`, and of `groups` for a group.
        results: task or group → its values by ``metric,filter``, as lmms-eval reports them.
        groups: the same of groups that have a score of their own.
        samples: task (of a group: each of its tasks) → one entry per question, of the filter that was asked for;
            lmms-eval puts those of all filters into one list.
        tasks: task → lmms-eval's object of it.
        unparsable: (task, doc_id) of answers that were scored with a draw: nothing could be made of them.
        about: all else that `simple_evaluate` returned (versions, configs, ...).
        warnings: what a reader of the score has to know.
    """

    name: str
    results: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    tasks: dict[str, Any]
    unparsable: frozenset[tuple[str, int]]
    about: dict[str, Any]
    warnings: tuple[str, ...] = ()


def run_task(lm: Any, task: Task, scratch: Path, host: Host | None = None) -> Outcome:
    """Ask every question of `task`.

    Args:
        lm: of `model.make_lm`; what it raises comes out as it is.
        task: of a suite; ``options["profile"]`` chooses among the prompts that some tasks have for several models.
        scratch: an empty folder for this call: generated YAML, files that tasks write, the log.
        host: the guard whose `home` the model was made with.

    Raises:
        MissingExtra: no lmms-eval.
        EvaluationError: whatever lmms-eval or the task's code ran into, in one line; it exits the process on some.
    """
    need_lmms_eval()
    from prunebench_lmms_eval.override import media_home, write_override

    scratch = Path(scratch).absolute()
    host = host or Host(scratch)
    try:
        name = write_override(task, scratch / "tasks")
        environment = media_home(task, scratch / "home")
        if task.dataset is not None:  # written anew for every call: nothing to keep among the user's data sets
            environment["LMMS_EVAL_DATASETS_CACHE"] = str(scratch / "datasets")
        with host.away(environment):
            found, watch = _evaluated(lm, task, name, scratch / "tasks")
    except (Exception, SystemExit) as error:
        failure, lm.failure = lm.failure, None
        if failure is not None and not isinstance(failure, SystemExit):
            raise failure from None
        if isinstance(error, PruneBenchError):
            raise
        raise EvaluationError(f"task {task.id!r}: {root_cause(error)}") from error
    samples = {key: watch.chosen(key, rows) for key, rows in found.pop("samples").items()}
    return Outcome(
        name=name,
        results=found.pop("results"),
        groups=found.pop("groups", {}),
        samples=samples,
        tasks=watch.tasks,
        unparsable=watch.unparsable(),
        about=found,
        warnings=(*lm.warnings, *watch.warnings),
    )


def _evaluated(lm: Any, task: Task, name: str, folder: Path) -> tuple[dict[str, Any], Any]:
    from lmms_eval.evaluator import simple_evaluate

    from prunebench_lmms_eval.judges import guarded
    from prunebench_lmms_eval.loading import fresh_folders, make_manager
    from prunebench_lmms_eval.sounds import waveforms_from_datasets

    manager, watch = make_manager(task, folder, str(task.options.get("profile", PROFILE)))
    with fresh_folders(), _no_waiting(task), waveforms_from_datasets(), guarded(task):
        found = simple_evaluate(
            model=lm,
            tasks=[name],
            task_manager=manager,
            batch_size=lm.batch_size,
            device=str(lm.device),
            limit=task.limit,
            bootstrap_iters=0,
            log_samples=True,
            process_docs_parallel=1,
            use_cache=None,
            cli_args=Namespace(output_path=os.getcwd(), process_with_media=True),  # some tasks write files there
            **SEEDS,
        )
    return found, watch


@contextmanager
def _no_waiting(task: Task) -> Iterator[None]:
    """lmms-eval tries five times with 2 s between: of use where a service answers, and no change where it does not."""
    import datasets.config
    from lmms_eval.api.task import ConfigurableTask
    from tenacity import stop_after_attempt

    alone = bool(task.data) or offline() is not None
    tried = [] if task.judged else [ConfigurableTask.process_results]
    tried += [ConfigurableTask.download] if alone else []
    retries = [retry for method in tried if (retry := getattr(method, "retry", None)) is not None]
    before = [retry.stop for retry in retries]
    for retry in retries:
        retry.stop = stop_after_attempt(1)
    counted = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS  # a request to a server for every file that is opened
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted and not alone
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        for retry, stop in zip(retries, before, strict=True):
            retry.stop = stop


def root_cause(error: BaseException) -> str:
    """One line about what was behind it all."""
    while True:
        last = getattr(error, "last_attempt", None)  # tenacity's RetryError
        inner = last.exception() if last is not None else None
        if inner is None:
            break
        error = inner
    if isinstance(error, SystemExit):
        return f"its code ends the process: {error.code}"
    if isinstance(error, AssertionError) and not str(error).strip():
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            where = frames[-1]
            return f"AssertionError in {'/'.join(Path(where.filename).parts[-2:])}, line {where.lineno}: {where.line}"
    return typed_line(error)
