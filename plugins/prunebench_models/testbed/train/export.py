"""The end of a training run: bf16 weights, processor, and the ground truth measured layer by layer."""

from __future__ import annotations

from pathlib import Path

import torch

from ..evaluation import evaluate
from ..modeling import TestbedForConditionalGeneration
from ..processing import TestbedProcessor
from . import roles
from .checkpoint import append_log
from .probe import HeldOut

__all__ = ["export"]


def export(
    model: TestbedForConditionalGeneration, processor: TestbedProcessor, held_out: HeldOut, out: Path, time: str
) -> None:
    """Write ``out / "model"`` and log what the written model, loaded again, can do.

    Everything is measured on the bf16 weights loaded as float32: that is what ships.
    """
    folder = out / "model"
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    shipped = TestbedForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    update, distance = held_out.updates(shipped)
    append_log(out, {"event": "updates", "time": time, "update": update, "one_minus_cosine": distance})
    dense = held_out.accuracy(shipped)
    rows = {"none": dense, "removable": held_out.accuracy(shipped, roles.REMOVABLE)}
    for layer in range(roles.LAYERS):
        rows[str(layer)] = held_out.accuracy(shipped, (layer,))
    append_log(out, {"event": "leave_one_out", "split": "calibration", "accuracy": rows})
    for name, row in rows.items():
        mean = 100 * sum(dense[domain] - row[domain] for domain in dense) / len(dense)
        print(f"without {name:>9}: {row} mean drop {mean:5.1f} points", flush=True)
    test = {domain: evaluate(shipped, processor, domain)["accuracy"] for domain in held_out.samples}
    append_log(out, {"event": "test", "questions_per_domain": 500, "accuracy": test, "roles": roles.planted_roles()})
    print(f"test split: {test}", flush=True)
