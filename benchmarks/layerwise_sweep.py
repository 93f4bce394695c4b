"""One walk over the layers for many plans against one walk for each: CPU seconds and decoder layers run.

    python benchmarks/layerwise_sweep.py --samples 64 --record benchmarks/records/layerwise_sweep.json

The plans are those of a table on the shipped model: each method at each sparsity. Both ways give the same plans, bit
for bit, or there is no figure. A bare pass of the dense model over the same samples, prompt and
answer, stands beside them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_cost import machine
from prunebench_baselines.owl import OWL
from prunebench_baselines.sparsegpt import SparseGPT
from prunebench_baselines.tamp import TAMP
from prunebench_baselines.wanda import Wanda
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench import Budget, PlanContext
from prunebench.layerwise.together import plan_together
from prunebench.probing import Probe, Remembered

SETS = {
    "dense inputs": [Wanda(sequential=False), SparseGPT(sequential=False), OWL(sequential=False)],
    "sequential": [Wanda(), SparseGPT(), OWL()],
    "everything": [Wanda(), Wanda(sequential=False), SparseGPT(), SparseGPT(sequential=False), OWL(), TAMP()],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "samples": arguments.samples,
        "sparsities": arguments.sparsities,
    }
    loaded = Testbed().load()
    samples = TestbedDataset().samples("calibration", arguments.samples)

    def timed(methods: list[Any], together: bool) -> tuple[float, list[str]]:
        shared = Remembered()
        pairs = []
        for method in methods:
            for share in arguments.sparsities:
                probe = Probe(loaded, samples, remembered=shared if together else Remembered())
                pairs.append((method, PlanContext(loaded.info, Budget(value=share), probe=probe)))
        started = time.process_time()
        plans = plan_together(pairs) if together else [plan_together([pair])[0] for pair in pairs]
        seconds = time.process_time() - started
        for plan in plans:
            if isinstance(plan, BaseException):
                raise plan
        return seconds, [plan.digest for plan in plans]

    def bare() -> float:
        started = time.process_time()
        with torch.inference_mode():
            for batch in Probe(loaded, samples).batches():
                loaded.adapter.forward(loaded, batch.inputs, logits_to_keep=1)
        return time.process_time() - started

    record["bare_cpu_s"] = round(float(np.median([bare() for _ in range(arguments.repeats + 1)])), 4)
    record["sets"] = {}
    for name, methods in SETS.items():
        alone, joint = [], []
        for _ in range(arguments.repeats):  # in turns, so that a busy machine is busy for both
            seconds, first = timed(methods, together=False)
            alone.append(seconds)
            seconds, second = timed(methods, together=True)
            joint.append(seconds)
            if first != second:
                raise SystemExit(f"{name}: plans made together are others than those made alone")
        row = {
            "plans": len(methods) * len(arguments.sparsities),
            "alone_cpu_s": round(float(np.median(alone)), 3),
            "together_cpu_s": round(float(np.median(joint)), 3),
            "ratio": round(float(np.median(np.array(alone) / np.array(joint))), 3),
        }
        record["sets"][name] = row
        print(f"{name}: {row['plans']} plans, alone {row['alone_cpu_s']} s, together {row['together_cpu_s']} s: "
              f"{row['ratio']}x; a bare pass {record['bare_cpu_s']} s")  # fmt: skip
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
