"""Train the testbed model: ``python -m prunebench_models.testbed.train --out DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .run import DEFAULT_STEPS, train


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; a second run of the same command goes on at the last checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m prunebench_models.testbed.train", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and final weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="CPU processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    parser.add_argument("--minutes-per-checkpoint", type=float, default=3.0, help="default: 3")
    for name, steps in DEFAULT_STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps, help=f"default: {steps}")
    options = parser.parse_args(arguments)
    train(
        options.out,
        device=options.device,
        workers=options.workers,
        seed=options.seed,
        steps={name: getattr(options, f"{name}_steps") for name in DEFAULT_STEPS},
        checkpoint_seconds=60 * options.minutes_per_checkpoint,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
