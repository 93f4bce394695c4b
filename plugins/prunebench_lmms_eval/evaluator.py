"""The evaluator ``lmms``: tasks of lmms-eval on any model that PruneBench has in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import jsonio
from prunebench.encoded import EncoderCache
from prunebench.environment import package_version
from prunebench.evaluator import Evaluator, Need, Progress, TaskResult

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task
    from prunebench_lmms_eval.call import Outcome

__all__ = ["LmmsEvaluator"]


class LmmsEvaluator(Evaluator):
    """Benchmarks of lmms-eval: its prompts, its rules for reading answers, its metrics, on the live model.

    Each task is one call of its `simple_evaluate`, with greedy answers and one score per question. What fails raises:
    an answer is empty only where the model said nothing. A question whose answer nothing can be made of may be scored
    by a draw among its options, as some tasks do; such draws belong to the question, so that every model meets the
    same ones, and they are counted as `unparsable`.
    """

    name = "lmms"

    def __init__(self, batch_size: int = 1, encoder: EncoderCache | None = None) -> None:
        self.batch_size = batch_size
        self.encoder = encoder or EncoderCache()

    def check(self, task: Task) -> None:
        from prunebench_lmms_eval.compat import need_lmms_eval

        need_lmms_eval()
        from prunebench_lmms_eval.check import check

        check(task)

    def needs(self, task: Task) -> list[Need]:
        from prunebench_lmms_eval.needs import needs

        return needs(task)

    def data_split(self, task: Task) -> str:
        from prunebench_lmms_eval.tasks_index import eval_split, find, leaves

        return next((split for one in leaves(find(task.source)) if (split := eval_split(one.config))), "test")

    def revision(self, task: Task) -> str:
        from prunebench_lmms_eval.check import revision

        return revision(task)

    def evaluate(self, loaded: LoadedModel, task: Task, progress: Progress | None = None) -> TaskResult:
        self.check(task)
        from prunebench_lmms_eval.call import run_task
        from prunebench_lmms_eval.host import Host
        from prunebench_lmms_eval.model import make_lm
        from prunebench_lmms_eval.questions_export import as_local
        from prunebench_lmms_eval.scoring import score_samples

        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="prunebench-lmms-") as folder:
            host = Host(Path(folder))
            lm = make_lm(
                loaded,
                encoder=self.encoder,
                batch_size=self.batch_size,
                progress=progress,
                host=host.home,
            )
            outcome = run_task(lm, task, Path(folder), host)
        scored = score_samples(task, outcome)
        low, high, method = interval(
            scored.score, scored.scores, scored.clusters, task.scale, scored.verdicts, scored.shares
        )
        warnings = dict.fromkeys((*outcome.warnings, *scored.warnings, *host.complaints()))
        result = TaskResult(
            task=task.id,
            metric=task.metric,
            n=len(scored.ids),
            score=scored.score,
            ci_low=low,
            ci_high=high,
            ci_method=method,
            higher_is_better=task.higher_is_better,
            chance=task.chance,
            majority=task.majority,
            empty=scored.empty,
            unparsable=scored.unparsable,
            seconds=time.perf_counter() - started,
            ids=tuple(scored.ids),
            scores=tuple(scored.scores),
            answers=tuple(scored.answers),
            kinds=dict(scored.kinds),
            scale=task.scale,
            weight=task.weight,
            clusters=tuple(scored.clusters),
            verdicts=tuple(scored.verdicts),
            source=source_of(task, outcome, lm.asked, len(scored.ids)),
            warnings=tuple(warnings),
        )
        return as_local(task, result)


def interval(
    score: float,
    scores: Sequence[float],
    clusters: Sequence[str],
    scale: float,
    verdicts: Sequence[float] = (),
    shares: Sequence[float] = (),
) -> tuple[float, float, str]:
    """95 % interval of the mean of `scores`, which are parts of `scale`; no width where `score` is no such mean.

    Marks that are `verdicts` but for the benchmark's rounding are taken for these. Where questions count differently
    (`shares`), those of one share are a stratum of a fixed number of questions: only what scatters within strata makes
    the score uncertain, not how many questions of each a resample happens to hold. Strata of one size are taken as one.
    """
    from prunebench.stats import mean_interval, whole_marks

    if not scores or abs(sum(scores) / len(scores) - score) > 1e-6 * max(scale, abs(score)):
        return score, score, "none"
    within = min(scores) >= 0 and score <= scale
    marks = [value / scale for value in whole_marks(scores, verdicts, scale)]
    if len(shares) == len(marks):
        strata: dict[float, list[float]] = {}
        keys = [round(share, 9) for share in shares]
        for key, value in zip(keys, marks, strict=True):
            strata.setdefault(key, []).append(value)
        means = {key: sum(values) / len(values) for key, values in strata.items()}
        marks = [round(score / scale + value - means[key], 9) for key, value in zip(keys, marks, strict=True)]
    low, high, method = mean_interval(marks, clusters=clusters)
    if within:
        low, high = max(0.0, low), min(1.0, high)
    # the mean was rounded on its way: it lies in its own interval all the same
    return min(low * scale, score), max(high * scale, score), method


def source_of(task: Task, outcome: Outcome, asked: Mapping[tuple[str, int], str], n: int) -> dict[str, str]:
    """What made and scored the questions.

    lmms-eval's own ``doc_hash`` is the same for every document (0.7.3 hashes a field that is never set), so ``docs``
    stands for what the model was given, words and media, and for the answers that were expected.

    Args:
        task: of a suite.
        outcome: of its call.
        asked: (task, doc_id) → fingerprint of the sample that was asked.
        n: scores that came of them.
    """
    targets = {(name, row["doc_id"]): str(row.get("target")) for name, rows in outcome.samples.items() for row in rows}
    docs = sorted([name, doc, mark, targets.get((name, doc), "")] for (name, doc), mark in asked.items())
    configs: dict[str, Any] = outcome.about.get("configs", {})
    data = {_dataset(configs[name]) for name in outcome.samples if name in configs}
    versions = {str(outcome.about.get("versions", {}).get(name)) for name in outcome.samples}
    own_files = any(key != "media" for key in task.data)
    return {
        "package": f"lmms-eval {package_version('lmms-eval')}",
        "task": task.source,
        "profile": str(task.options.get("profile", "default")),
        "version": ", ".join(sorted(versions)),
        "dataset": task.dataset or ("own files" if own_files else ", ".join(sorted(data))),
        "docs": jsonio.digest(docs)[:16],
        # For estimates of time (`TaskResult.asked`): several orders or questions may make one score.
        **({"asked": str(len(asked))} if len(asked) != n else {}),
        # For the dense gate, which compares whole benchmarks alone.
        **({"limit": str(task.limit)} if task.limit is not None else {}),
        **({"questions": str(task.questions)} if task.limit is not None and task.questions else {}),
    }


def _dataset(config: Mapping[str, Any]) -> str:
    name = config.get("dataset_name")
    return f"{config.get('dataset_path')}{f'/{name}' if name else ''}"
