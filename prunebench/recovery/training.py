"""The one training loop: AdamW under a budget of tokens, resumed bit for bit from where it was cut short.

The order of samples follows from the seed and the epoch alone, models stay in evaluation mode (what adapters drop of
their inputs follows from the seed and the batch alone), and all that a step depends on is in the checkpoint. So a
training that was interrupted ends with the bits of one that was not, wherever the kernels themselves are deterministic
(they are on a CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import RecoveryError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.recovery.checkpoint import Checkpoint
    from prunebench.recovery.spec import LayerReplacement, Lora, Tune

__all__ = ["Loss", "Progress", "State", "split_samples", "train"]

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and words such as the loss."""

CHECKPOINT_SECONDS = 60.0
"""How much work a killed process may lose."""


@dataclass(frozen=True)
class Loss:
    """Of one batch.

    Attributes:
        total: what is differentiated.
        value: the mean loss as a number, for the progress line.
        tokens: that went through the model, without padding.
    """

    total: Tensor
    value: float
    tokens: int


@dataclass
class State:
    """Where training stands, at the boundary of two optimiser steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "loss": None if math.isnan(self.loss) else self.loss}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        return cls(**{**values, "loss": math.nan if values["loss"] is None else values["loss"]})


def split_samples(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices held out, from the seed alone; at least one sample is trained on."""
    order = np.random.default_rng([seed, 0]).permutation(n).tolist()
    count = min(int(share * n + 0.5), n - 1)
    return sorted(order[count:]), sorted(order[:count])


def train(
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    recovery: LayerReplacement | Tune | Lora,
    rows: Sequence[int],
    loss_of: Callable[[Sequence[int]], Loss],
    held_out: Callable[[], dict[str, float]],
    *,
    batch_size: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> tuple[State, dict[str, dict[str, Tensor]]]:
    """Train `groups` in place and return where it ended, with the values that they came to.

    Args:
        groups: group → name → parameter, each group with a gradient norm of its own.
        recovery: learning rates, budget, seeds.
        rows: indices of the samples to train on.
        loss_of: the loss of a batch of them.
        held_out: losses on samples that are not trained on; asked for before the first and after the last step.
        batch_size: samples per forward pass.
        checkpoint: where to resume from and to save to; None keeps nothing.
        progress: told after each batch.

    Raises:
        RecoveryError: the loss is not a finite number.
    """
    loop = _Loop(groups, recovery, rows, loss_of, batch_size, checkpoint, progress or (lambda done, whole, text: None))
    loop.resume()
    if not loop.state.finished:
        if not loop.state.before:
            loop.state.before = held_out()
        loop.run()
        loop.state.after = held_out()
        loop.finish()
    return loop.state, {
        group: {name: parameter.detach().clone() for name, parameter in members.items()}
        for group, members in groups.items()
    }


class _Loop:
    """Parameters with their float32 masters, one optimiser, and the state."""

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        recovery: LayerReplacement | Tune | Lora,
        rows: Sequence[int],
        loss_of: Callable[[Sequence[int]], Loss],
        batch_size: int,
        checkpoint: Checkpoint | None,
        progress: Progress,
    ) -> None:
        import torch

        self.groups, self.recovery, self.rows, self.loss_of = groups, recovery, list(rows), loss_of
        self.checkpoint, self.progress = checkpoint, progress
        # Samples stay together over all epochs, so that what was encoded once is found again.
        order = np.random.default_rng([recovery.seed, 1]).permutation(self.rows).tolist()
        self.batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        # One pass holds `batch_size` samples where the model takes batches, and one where it does not.
        self.accumulate = recovery.accumulate * max(1, recovery.batch_size // batch_size)
        self.work = {f"{group}|{name}": p for group, members in groups.items() for name, p in members.items()}
        # AdamW at 1e-5 moves a bfloat16 weight by less than its last digit: steps are taken in float32.
        self.masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float())
            for name, p in self.work.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.masters.values(),
            lr=recovery.learning_rate,
            betas=(recovery.beta1, recovery.beta2),
            weight_decay=recovery.weight_decay,
        )
        self.state = State()
        self.saved = 0
        self.whole = True  # False while a step is half done: such a state must not be saved
        self.since = time.perf_counter()

    # -- where it stands ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self._done(self.state)

    def _done(self, state: State) -> bool:
        if self.recovery.tokens is not None:
            return state.tokens >= self.recovery.tokens
        return state.epoch >= self.recovery.epochs

    def share(self, state: State) -> float:
        """How much of the budget is used, in [0, 1]."""
        if self.recovery.tokens is not None:
            return min(1.0, state.tokens / self.recovery.tokens)
        return min(1.0, state.samples / (self.recovery.epochs * len(self.rows)))

    def rate(self, share: float) -> float:
        """Learning rate where `share` of the budget is used: a ramp, then a cosine or a line to the least rate."""
        recovery = self.recovery
        if share < recovery.warmup:
            return recovery.learning_rate * share / recovery.warmup
        along = (share - recovery.warmup) / (1.0 - recovery.warmup)
        if getattr(recovery, "variant", "paper") == "released_code":  # a horizon in batches, stepped once per step
            along *= min(1.0, 2.0 / recovery.accumulate)
        low = min(recovery.min_learning_rate, recovery.learning_rate)
        if getattr(recovery, "schedule", "cosine") == "linear":
            return low + (recovery.learning_rate - low) * (1.0 - along)
        return low + 0.5 * (recovery.learning_rate - low) * (1.0 + math.cos(math.pi * along))

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        written = time.perf_counter()
        self.since = written
        try:
            while not self.done:
                self._step()
                if time.perf_counter() - written > CHECKPOINT_SECONDS:
                    self.save()
                    written = time.perf_counter()
        except BaseException:
            if self.whole:  # also a Ctrl-C: what is done so far is not lost
                self.save()
            raise
        self._tick()
        self.save()

    def _step(self) -> None:
        import torch

        ahead, before, batches = State(**asdict(self.state)), self.share(self.state), 0
        values = []
        for parameter in self.work.values():
            parameter.grad = None
        for rows in self._batches(ahead):
            with self._dice(ahead):
                loss = self.loss_of(rows)
            if not math.isfinite(loss.value):
                raise RecoveryError(
                    f"training diverged: the loss of step {ahead.step + 1} is not a finite number; lower the rate with "
                    "-P recover.learning_rate, or use --dtype float32"
                )
            loss.total.backward()
            values.append(loss.value)
            batches += 1
            ahead.samples += len(rows)
            ahead.tokens += loss.tokens
            self._advance(ahead)
            shown = f"loss {loss.value:.4f}"
            if self.recovery.tokens is not None:
                self.progress(min(ahead.tokens, self.recovery.tokens), self.recovery.tokens, shown)
            else:
                self.progress(ahead.samples, self.recovery.epochs * len(self.rows), shown)
            if batches == self.accumulate or self._done(ahead):
                break
        # In the middle of what the step used: neither the first nor the last one goes by without moving.
        rate = self.rate(0.5 * (before + self.share(ahead)))
        ahead.step, ahead.loss = ahead.step + 1, sum(values) / len(values)
        self.whole = False
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in self.work.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.masters[name].grad = grad.to(torch.float32) / batches
        if self.recovery.clip:
            for group, members in self.groups.items():
                own = [self.masters[f"{group}|{name}"] for name in members]
                torch.nn.utils.clip_grad_norm_(own, self.recovery.clip)
        self.optimizer.step()
        self._put()
        ahead.seconds = self.state.seconds
        self.state = ahead
        self.whole = True

    @contextmanager
    def _dice(self, state: State) -> Iterator[None]:
        """Random numbers of the batch at hand, whatever was drawn before; those of the process are left alone."""
        import torch

        if not getattr(self.recovery, "dropout", 0.0):
            yield
            return
        devices = {p.device for p in self.work.values() if p.device.type != "cpu"}
        kind = next(iter(devices)).type if devices else "cuda"
        with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices), device_type=kind):
            torch.manual_seed(int(np.random.default_rng([self.recovery.seed, 3, state.samples]).integers(1 << 62)))
            yield

    def _batches(self, state: State) -> Iterator[list[int]]:
        """From where `state` stands on; each epoch in an order of its own."""
        while True:
            order = np.random.default_rng([self.recovery.seed, 2, state.epoch]).permutation(len(self.batches))
            yield self.batches[order[state.batch]]

    def _advance(self, state: State) -> None:
        state.batch += 1
        if state.batch == len(self.batches):
            state.epoch, state.batch = state.epoch + 1, 0

    def _put(self) -> None:
        import torch

        with torch.no_grad():
            for name, master in self.masters.items():
                if master is not self.work[name]:
                    self.work[name].copy_(master)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self.since
        self.since = now

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        if self.checkpoint is None or self.state.step == self.saved:
            return
        self._tick()
        tensors = {f"parameter|{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            tensors |= {f"{key}|{name}": value for key, value in self.optimizer.state[master].items()}
        self.checkpoint.save(self.state.as_json(), tensors)
        self.saved = self.state.step

    def finish(self) -> None:
        self.state.finished = True
        if self.checkpoint is not None:  # the optimiser has done its work
            tensors = {f"parameter|{name}": parameter for name, parameter in self.work.items()}
            self.checkpoint.save(self.state.as_json(), tensors)

    def resume(self) -> None:
        import torch

        found = self.checkpoint.load() if self.checkpoint is not None else None
        if found is None:
            return
        values, tensors = found
        state = State.from_json(values)
        with torch.no_grad():
            for name, master in (self.work if state.finished else self.masters).items():
                master.copy_(tensors[f"parameter|{name}"])
                if not state.finished:
                    self.optimizer.state[master] = {
                        key: tensors[f"{key}|{name}"].to("cpu" if key == "step" else master.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        if not state.finished:
            self._put()
        self.state, self.saved = state, state.step
