"""Re-scoring from kept states against the naive loop: passes and CPU seconds of a greedy search.

    python benchmarks/suffix_forwards.py --layers 32 --remove 7 --samples 8

Both search one random Llama decoder for the same layers by SLEB's rule. The naive loop really prunes the model and runs
the whole of it for every candidate; a pass of it counts as one, although it has fewer layers than the dense model.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from prunebench_baselines.sleb import SLEB

from prunebench import Budget, LoadedModel, Plan, PlanContext, pruned
from prunebench.calibration.samples import Sample
from prunebench.probing import Probe
from prunebench.testing.tiny import TinyLlama, TinyText


def model_of(layers: int, width: int) -> LoadedModel:
    """A random Llama decoder."""

    class Deep(TinyLlama):
        def build(self) -> Any:
            from transformers import LlamaConfig, LlamaForCausalLM

            heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128}
            sizes = {"vocab_size": 64, "hidden_size": width, "intermediate_size": 3 * width}
            return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **heads))

    return Deep().load()


def naive(loaded: LoadedModel, samples: list[Sample], remove: int) -> tuple[list[int], int]:
    """The order of removal, and how many passes over all samples that took."""
    inputs = loaded.encode(samples)
    answers = torch.tensor([loaded.adapter.answer_ids(loaded, sample) for sample in samples])  # equally long here
    batch = loaded.adapter.append_tokens(loaded, inputs, answers, torch.ones_like(answers))
    removed: list[int] = []
    passes = 0
    for _ in range(remove):
        losses = {}
        for layer in range(1, loaded.info.n_layers - 1):
            if layer not in removed:
                with pruned(loaded, Plan.drop(loaded.info, [*removed, layer])):
                    logits = loaded.adapter.forward(loaded, batch, logits_to_keep=answers.shape[1] + 1)[:, :-1]
                losses[layer] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten()))
                passes += 1
        removed.append(min(losses, key=lambda layer: (losses[layer], -layer)))
    return removed, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 32), ("remove", 7), ("samples", 8), ("width", 128), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded, samples = model_of(args.layers, args.width), TinyText().samples("calibration", args.samples)
    seconds: dict[str, list[float]] = {"naive": [], "suffix": []}
    for _ in range(args.repeat):  # in turns, so that a busy machine is busy for both
        started = time.process_time()
        with torch.inference_mode():
            order, passes = naive(loaded, samples, args.remove)
        seconds["naive"].append(time.process_time() - started)
        budget = Budget(value=args.remove, unit="layers")
        context = PlanContext(model=loaded.info, budget=budget, probe=Probe(loaded, samples))
        started = time.process_time()
        SLEB(samples=args.samples).plan(context)
        seconds["suffix"].append(time.process_time() - started)
        if context.notes["removal_order"] != order:
            raise SystemExit(f"the orders differ: {order} and {context.notes['removal_order']}")
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    print(f"{args.layers} layers, {args.remove} removed, {args.samples} samples; removal order {order}, the same twice")
    print(f"naive:  {passes} passes, {times['naive']:.2f} CPU s")
    print(f"suffix: {context.probe.passes:.1f} full-pass equivalents, {times['suffix']:.2f} CPU s")
    by_passes, by_time = passes / context.probe.passes, times["naive"] / times["suffix"]
    print(f"ratio:  {by_passes:.2f} in passes, {by_time:.2f} in CPU seconds")


if __name__ == "__main__":
    main()
