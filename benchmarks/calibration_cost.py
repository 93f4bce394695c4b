"""What do the calibration statistics cost?  The streaming pass against the bare forward pass, in one run.

    python benchmarks/calibration_cost.py                       # table on the screen
    python benchmarks/calibration_cost.py --record benchmarks/records/calibration_cost.json

The same encoded batches go through the same model without and with statistics, one right after the other, and the
ratio is taken of the two: what else the machine does falls on both.  Several batches are a calibration as it is: memory
is taken from the system in the first one and used again in the others.  Which of them is first changes with every pair,
and the sets of statistics take turns.  The median over the pairs counts, with its quartiles; CPU seconds of one thread
are compared.  A forward pass is that of the whole model: towers, projectors, decoder.  What the encoder takes of it is
in the record, for those who look at the decoder alone.  Writing the trace is outside the clock.  The testbed is the
hardest case: the share of the statistics falls with the width of the model, since a token's forward pass grows with the
square of the width and its statistics grow with the width.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench.calibration.collect import calibrate
from prunebench.calibration.samples import fingerprint

SIMILARITY = ("token_cosine", "norms", "points.last", "points.mean", "pooled", "sublayer_cosine")
"""What all methods together read that look at hidden states and their similarity."""

SETS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "token_cosine": ("token_cosine",),
    "similarity": SIMILARITY,
    "sublayer_cosine": ("sublayer_cosine",),
    "important_cosine=0.5": ("important_cosine=0.5",),
    "token_states=16, mlp_outputs=16": ("token_states=16", "mlp_outputs=16"),
    "everything": (*SIMILARITY, "important_cosine=0.5", "token_states=16", "mlp_outputs=16"),
}
WORDS = {
    "nothing": "hooks, packing, norms and the check for NaN alone",
    "similarity": "all similarity methods and topo: " + ", ".join(SIMILARITY),
    "everything": "the same with token importance and closed-form compensation",
}


def machine() -> dict[str, Any]:
    """What ran it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.machine(), "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0], "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "numpy", "prunebench")},
    }  # fmt: skip


def measure(n_samples: int, n_batches: int, repeats: int) -> dict[str, Any]:
    """Ratios of every set to the bare pass, and CPU seconds of the bare pass."""
    loaded = Testbed().load()
    samples = TestbedDataset().samples("calibration", n_samples * n_batches)
    parts = [samples[start : start + n_samples] for start in range(0, len(samples), n_samples)]
    with torch.inference_mode():
        inputs = [loaded.encode(part) for part in parts]

    mark = fingerprint(samples)  # a run knows it before it calibrates: it names the trace's file

    def bare() -> float:
        started = time.process_time()
        with torch.inference_mode():
            for part in parts:
                loaded.adapter.forward(loaded, loaded.encode(part), logits_to_keep=1)
        return time.process_time() - started

    def collecting(statistics: tuple[str, ...]) -> float:
        started = time.process_time()
        calibrate(loaded, samples, statistics, batch_size=n_samples, mark=mark)
        return time.process_time() - started

    def encoding() -> float:
        started = time.process_time()
        with torch.inference_mode():
            for part in parts:
                loaded.encode(part)
        return time.process_time() - started

    for statistics in SETS.values():  # first calls pay for allocation and for choosing kernels
        bare()
        collecting(statistics)
    ratios: dict[str, list[float]] = {name: [] for name in SETS}
    seconds: list[float] = []
    for repeat in range(repeats):
        for name, statistics in SETS.items():
            if repeat % 2:
                base, more = bare(), collecting(statistics)
            else:
                more, base = collecting(statistics), bare()
            ratios[name].append(more / base)
            seconds.append(base)
    rows = {}
    for name, values in ratios.items():
        low, middle, high = (round(float(value), 4) for value in np.quantile(values, (0.25, 0.5, 0.75)))
        rows[name] = {"ratio": middle, "quartiles": [low, high]}
    return {
        "model": {"name": loaded.info.name, "n_layers": loaded.info.n_layers, "hidden_size": loaded.info.hidden_size},
        "input": {
            "samples": len(samples),
            "batches": n_batches,
            "tokens": sum(each.n_tokens for each in inputs),
            "padded_tokens": sum(each.attention_mask.numel() for each in inputs),
        },
        "pairs": repeats,
        "bare_cpu_s": round(float(np.median(seconds)), 4),
        "encoder_cpu_s": round(float(np.median([encoding() for _ in range(repeats)])), 4),
        "sets": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16, help="in a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15, help="pairs per set of statistics")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": machine()}
    record |= measure(arguments.samples, arguments.batches, arguments.repeats)
    print(f"bare forward pass: {record['bare_cpu_s']:.3f} CPU s, {record['encoder_cpu_s']:.3f} of it encoder")
    print(record["input"])
    print(f"{'collected':<34}{'over bare':>10}  quartiles")
    for name, row in record["sets"].items():
        low, high = (100 * (value - 1) for value in row["quartiles"])
        print(f"{name:<34}{100 * (row['ratio'] - 1):>+9.1f}%  {low:+.1f} … {high:+.1f}   {WORDS.get(name, '')}")
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
