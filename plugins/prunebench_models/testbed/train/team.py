"""Two processes of one thread each share every step: on a busy CPU this beats two threads that wait at every op."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

__all__ = ["Team"]

PATIENCE = 900.0  # seconds that a process waits for the other before it gives up
STOP = -1

Share = Callable[[nn.Module, int, int, Tensor], None]


class Team:
    """Computes the gradients of a step, split over processes; the sum does not depend on how many there are.

    ``share(model, step, worker, stats)`` does one worker's part of a step: it accumulates gradients in the model and
    writes what it wants reported into its own rows of ``stats``.
    """

    def __init__(self, model: nn.Module, share: Share, workers: int, stats: tuple[int, ...]) -> None:
        """Start ``workers`` − 1 further processes; parameters are moved into shared memory, in place."""
        self.model, self.share = model, share
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.stats = torch.zeros(stats).share_memory_()
        self.cpu = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.processes: list[mp.Process] = []
        if workers == 1:
            return
        torch.set_num_threads(1)
        model.share_memory()
        context = mp.get_context("spawn")
        self.step = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.gradients = torch.zeros(workers, sum(p.numel() for p in self.trained)).share_memory_()
        self.begin, self.end = context.Barrier(workers), context.Barrier(workers)
        for worker in range(1, workers):
            arguments = (model, share, worker, self.step, self.gradients, self.stats, self.cpu, self.begin, self.end)
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()

    def gradients_of(self, step: int) -> Tensor:
        """Leave the summed gradients of a step in the parameters' ``grad``; return what the workers reported."""
        self.stats.zero_()
        if not self.processes:
            self.share(self.model, step, 0, self.stats)
            return self.stats
        self.step[0] = step
        self.begin.wait(PATIENCE)
        self.share(self.model, step, 0, self.stats)
        _flatten(self.trained, self.gradients[0])
        self.end.wait(PATIENCE)
        total, start = self.gradients.sum(0), 0
        for parameter in self.trained:
            parameter.grad = total[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return self.stats

    @property
    def further_cpu_seconds(self) -> float:
        """CPU seconds that the further processes have spent."""
        return float(self.cpu.sum())

    def stop(self) -> None:
        """End the further processes."""
        if self.processes:
            self.step[0] = STOP
            self.begin.wait(PATIENCE)
            for process in self.processes:
                process.join(PATIENCE)


def _flatten(parameters: list[nn.Parameter], target: Tensor) -> None:
    start = 0
    for parameter in parameters:
        place = target[start : start + parameter.numel()]
        place.zero_() if parameter.grad is None else place.copy_(parameter.grad.flatten())
        start += parameter.numel()


def _serve(model, share: Share, worker: int, step, gradients, stats, cpu, begin, end) -> None:
    torch.set_num_threads(1)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    while True:
        begin.wait(PATIENCE)
        if int(step[0]) == STOP:
            return
        for parameter in trained:
            parameter.grad = None
        share(model, int(step[0]), worker, stats)
        _flatten(trained, gradients[worker])
        cpu[worker] = time.process_time()
        end.wait(PATIENCE)
