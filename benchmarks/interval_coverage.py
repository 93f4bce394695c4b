"""How often do 95 % intervals hold the truth?  Simulated answers of two models with known scores, alone and clustered.

    python benchmarks/interval_coverage.py                       # table on the screen
    python benchmarks/interval_coverage.py --record benchmarks/records/interval_coverage.json

An answer is right where a normal variable lies below the quantile of the model's true score.  Its parts are shared by
the question (both models find it easy), by the image or video, by image and model (what this model sees in it), and its
own: so answers about one image go together, and so do the two models' differences on it.  The truth is known exactly.
Rows named `alone` give clustered answers to an interval that knows nothing of the clusters: they show what that costs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from prunebench.stats import Interval, design_effect, mean_interval, paired_difference, relative_intervals

SHARES = {"question": 0.35, "cluster": 0.25, "cluster and model": 0.25}
"""Of the variance; the rest is each answer's own. Without clusters their shares are each answer's own, too."""
CHANCE = 0.25


class Case(NamedTuple):
    """One row: a statistic of `n` questions about `images` (0: each question stands alone)."""

    name: str
    statistic: str
    n: int
    images: int = 0
    pruned: float = 0.62
    dense: float = 0.70
    tasks: int = 1
    blind: bool = False


CASES = (
    Case("mean, Wilson", "mean", 200),
    Case("mean, Wilson", "mean", 1000),
    Case("mean of graded scores, bootstrap", "graded", 200),
    Case("mean of graded scores, bootstrap", "graded", 400),
    Case("mean, clustered", "mean", 200, 40),
    Case("mean near 1, clustered", "mean", 300, 75, 0.95),
    Case("mean, clustered", "mean", 300, 150),
    Case("mean, clustered", "mean", 1000, 250),
    Case("mean of graded scores, clustered", "graded", 400, 100),
    Case("mean, alone", "mean", 400, 80, blind=True),
    Case("difference", "difference", 200),
    Case("difference", "difference", 1000),
    Case("difference, clustered", "difference", 200, 40),
    Case("difference, clustered", "difference", 300, 150),
    Case("difference, clustered", "difference", 1000, 250),
    Case("difference of 3 tasks, clustered", "difference", 200, 50, tasks=3),
    Case("difference of few questions", "difference", 30),
    Case("difference, few clusters", "difference", 200, 20),
    Case("difference near 1", "difference", 300, pruned=0.97, dense=0.98),
    Case("difference near 1, clustered", "difference", 300, 75, 0.97, 0.98),
    Case("difference of 3 tasks near 1, clustered", "difference", 300, 75, 0.97, 0.98, tasks=3),
    Case("difference, alone", "difference", 400, 80, blind=True),
    Case("relative, plain", "plain", 200),
    Case("relative, plain, clustered", "plain", 300, 75),
    Case("relative, chance-corrected", "corrected", 200),
    Case("relative, chance-corrected", "corrected", 1000),
    Case("relative, chance-corrected, clustered", "corrected", 300, 75),
    Case("relative, chance-corrected, few clusters", "corrected", 200, 20),
    Case("relative near 1, clustered", "corrected", 300, 75, 0.93, 0.95),
    Case("relative of 3 tasks, clustered", "corrected", 300, 75, tasks=3),
    Case("relative of errors, plain", "errors", 300, 75),
    Case("relative of log-likelihoods, plain", "logs", 60),
    Case("relative of log-likelihoods, chance-corrected", "log shares", 60),
    Case("relative, chance-corrected, alone", "corrected", 400, 80, blind=True),
)


def answers(random: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Right (1) and wrong (0) answers of the pruned and of the dense model, (n,) each, and the images' names.

    Images have about as many questions each, at least one; which has more is drawn anew each time.
    """
    n, images = case.n, case.images or case.n
    image = np.concatenate([np.arange(images), random.integers(images, size=n - images)])
    shares = SHARES if case.images else {**SHARES, "cluster": 0.0, "cluster and model": 0.0}
    shared = math.sqrt(shares["question"]) * random.standard_normal(n)
    shared += math.sqrt(shares["cluster"]) * random.standard_normal(images)[image]
    own = math.sqrt(1 - sum(shares.values()))
    found = []
    for score in (case.pruned, case.dense):
        seen = math.sqrt(shares["cluster and model"]) * random.standard_normal(images)[image]
        found.append((shared + seen + own * random.standard_normal(n) < ndtri(score)).astype(np.float64))
    return found[0], found[1], [str(i) for i in image] if case.images and not case.blind else []


def once(random: np.random.Generator, case: Case, n_boot: int) -> tuple[Any, float]:
    """An interval (low, high, ...) and the truth."""
    tasks = {str(i): answers(random, case) for i in range(case.tasks)}
    pruned, dense, clusters = ({task: found[part] for task, found in tasks.items()} for part in range(3))
    if case.statistic == "mean":
        return mean_interval(pruned["0"], clusters=clusters["0"], n_boot=n_boot), case.pruned
    if case.statistic == "graded":  # half marks or more for a right answer, as of edit distances
        scores = pruned["0"] * random.uniform(0.5, 1.0, size=case.n)
        return mean_interval(scores, clusters=clusters["0"], n_boot=n_boot), 0.75 * case.pruned
    if case.statistic == "difference":
        found = paired_difference(pruned, dense, clusters=clusters, n_boot=n_boot)
        return (found.low, found.high), case.pruned - case.dense
    nowhere = Interval(-math.inf, math.inf, "none")
    if case.statistic == "errors":
        wrong, wrong_dense = ({task: 1 - right for task, right in model.items()} for model in (pruned, dense))
        intervals = relative_intervals(wrong, wrong_dense, lower_is_better=tasks, clusters=clusters, n_boot=n_boot)
        return intervals.plain or nowhere, (1 - case.dense) / (1 - case.pruned)
    if case.statistic in ("logs", "log shares"):  # nats per token by window: 3 and 3.5 where guessing has 7
        base = random.normal(3.0, 0.4, case.n)
        loss = base + random.gamma(2.0, 0.25, case.n)
        known = {"lower_is_better": tasks, "log_scale": tasks, "n_boot": n_boot}
        intervals = relative_intervals({"0": loss}, {"0": base}, {"0": math.exp(7.0)}, **known)
        if case.statistic == "logs":
            return intervals.plain or nowhere, math.exp(-0.5)
        return intervals.chance_corrected or nowhere, 3.5 / 4.0
    chances = dict.fromkeys(tasks, CHANCE)
    intervals = relative_intervals(pruned, dense, chances, clusters=clusters, n_boot=n_boot)
    if case.statistic == "plain":
        return intervals.plain or nowhere, case.pruned / case.dense
    return intervals.chance_corrected or nowhere, (case.pruned - CHANCE) / (case.dense - CHANCE)


def coverage(case: Case, simulations: int, n_boot: int = 1000, seed: int = 0) -> dict[str, float]:
    """Share of intervals that hold the truth, that lie above and below it, and their mean width."""
    random = np.random.default_rng([seed, CASES.index(case) if case in CASES else len(CASES)])
    draws = (once(random, case, n_boot) for _ in range(simulations))
    low, high, truth = np.array([(*interval[:2], at) for interval, at in draws]).T
    return {
        "covered": float(((low <= truth) & (truth <= high)).mean()),
        "above": float((low > truth).mean()),
        "below": float((high < truth).mean()),
        "width": float(np.mean(high - low)),
    }


def effect(case: Case, seed: int = 0) -> float:
    """Design effect of the statistic's per-question values, mean over 50 simulated suites; 1 without clusters."""
    random, found = np.random.default_rng(seed), []
    for _ in range(50):
        pruned, dense, clusters = answers(random, case._replace(blind=False))
        values = pruned if case.statistic in ("mean", "graded") else pruned - dense
        found.append(design_effect(values, clusters))
    return float(np.mean(found))


def machine() -> dict[str, Any]:
    """What ran it."""
    return {
        "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "scipy", "prunebench")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, help="of each row (default 4000: error 0.3 points)")
    parser.add_argument("--n-boot", type=int, default=500, help="resamples of each bootstrap (default 500)")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    record |= {"machine": machine(), "simulations": arguments.simulations, "n_boot": arguments.n_boot}
    record |= {"shares": SHARES, "chance": CHANCE, "rows": []}
    titles = ("n", "images", "effect", "covered %", "above %", "below %", "width", "CPU s")
    print(f"{'95 % interval of':<46}" + "".join(f"{title:>10}" for title in titles))
    for case in CASES:
        start = time.process_time()
        row = {**case._asdict(), "design_effect": effect(case)}
        row |= coverage(case, arguments.simulations, arguments.n_boot)
        row["cpu_s"] = time.process_time() - start
        record["rows"].append(row)
        cells = [str(case.n), str(case.images or "-"), f"{row['design_effect']:.2f}"]
        cells += [f"{100 * row[key]:.1f}" for key in ("covered", "above", "below")]
        cells += [f"{row['width']:.3f}", f"{row['cpu_s']:.1f}"]
        print(f"{case.name:<46}" + "".join(f"{cell:>10}" for cell in cells), flush=True)
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
