"""One walk over the decoder's layers for several thinners at once.

Each layer runs through the model's own forward pass, so masks, positions and what a family adds between layers are its
own, for every sample. The dense model's hidden states are one stream, which scouts and thinners with
``sequential=False`` share; a sequential thinner shares it until it has changed a layer, and then has a stream of its
own. Streams are walked through a layer one after the other, and a layer's statistics are forgotten before the next
stream: at no time are there more Hessians than those of one layer in one stream.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.layerwise.contract import LayerView, LinearView
from prunebench.layerwise.held import Held, Material, Room
from prunebench.layerwise.linears import linear_modules
from prunebench.layerwise.statistics import Collector
from prunebench.layerwise.stopwatch import Stopwatch
from prunebench.layerwise.walker import Walker
from prunebench.measure.memory import torch_peak
from prunebench.plan import Plan
from prunebench.surgery import pruned

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from prunebench.ops import Op
    from prunebench.probing import Probe

__all__ = ["sweep"]


def sweep(
    probe: Probe, material: Material | None, walkers: Sequence[Walker], progress: Callable[[], None] | None = None
) -> None:
    """Lead all walkers through the decoder; what they come to, and what it took, is noted in them.

    A thinner that raises is out with its exception. The model is bit for bit as before afterwards, also after an
    exception or an interrupt.

    Args:
        probe: the dense model.
        material: batches; may be None where no walker needs the model to run.
        walkers: thinners that have seen nothing yet.
        progress: called after every layer.
    """
    import torch

    with _peak(walkers, probe.loaded.device), torch.inference_mode():
        walk = _Sweep(probe, material, walkers)
        for layer in range(probe.n_layers):
            walk.layer(layer)
            if progress is not None:
                progress()


@dataclass(eq=False)
class _Stream:
    """Hidden states that some walkers go on from."""

    walkers: list[Walker]
    states: Held

    @property
    def live(self) -> list[Walker]:
        return [walker for walker in self.walkers if walker.error is None]


class _Sweep:
    def __init__(self, probe: Probe, material: Material | None, walkers: Sequence[Walker]) -> None:
        self.loaded, self.passage, self.last = probe.loaded, probe.passage, probe.n_layers - 1
        self.material, self.walkers = material, walkers
        self.blind = [walker for walker in walkers if not walker.reads_inputs]
        self.watch = Stopwatch(self.loaded.device)
        reading = [walker for walker in walkers if walker.reads_inputs]
        self.streams = [_Stream(reading, self._held())] if reading else []

    def layer(self, number: int) -> None:
        """Lead everybody through one layer."""
        linears = linear_modules(self.loaded.layers[number])
        for stream in list(self.streams):
            self._stream(stream, number, linears)
        for stream in self.streams:
            if number == self.last or not stream.live:
                stream.states.clear()
        self.streams = [stream for stream in self.streams if stream.live]
        for walker in self.blind:
            self._thin(walker, number, linears, None)
        for walker in self.walkers:
            if walker.error is not None:  # what raised must not keep statistics alive
                traceback.clear_frames(walker.error.__traceback__)

    def _stream(self, stream: _Stream, number: int, linears: dict[str, nn.Linear]) -> None:
        live = stream.live
        collector = Collector(number, linears, live, self.watch)
        stay = [walker for walker in live if not walker.leaves]
        ahead = self._held() if stay and len(stay) < len(live) else stream.states
        with self._failing(live), self.watch.on(live):
            self._collect(stream, number, collector, ahead if stay else None)
        done = []  # sequential walkers, with what they do to this layer
        for walker in stream.live:
            found = self._thin(walker, number, linears, collector)
            self._charge(walker, number)
            if walker.error is None and walker.leaves:
                done.append((walker, *found))
        del collector
        if number < self.last:
            self._go_on(stream, number, done, ahead if stay else None)

    def _collect(self, stream: _Stream, number: int, collector: Collector, ahead: Held | None) -> None:
        """The layer as it is, seen by the collector; what comes out of it goes to `ahead`, where that is wanted."""
        assert self.material is not None
        for index in range(len(self.material)):
            batch = self.material.batch(index)
            with collector.over(self.loaded, batch):
                output = self.passage.through(batch.inputs, number, stream.states[index])
            if ahead is not None:
                ahead[index] = output

    def _thin(
        self, walker: Walker, number: int, linears: dict[str, nn.Linear], collector: Collector | None
    ) -> tuple[list[Op], dict[str, Tensor]]:
        """Ask a thinner about a layer; the operations on it, with their tensors."""
        if walker.error is not None:
            return [], {}
        with self._failing([walker]), self.watch.on([walker]):
            if collector is None:
                weights = {name: LinearView(name, module.weight.detach()) for name, module in linears.items()}
                view, held = LayerView(number, weights), 0
            else:
                view, held = collector.view(walker), self._bytes_held(number, collector.nbytes(walker))
                walker.unseen += [f"{name} of layer {number}" for name, calls in collector.calls.items() if not calls]
            ops, tensors, size = walker.thin(view, linears)
            walker.peak = max(walker.peak, held + size)
            return ops, tensors
        return [], {}

    def _go_on(
        self, stream: _Stream, number: int, done: list[tuple[Walker, list[Op], dict[str, Tensor]]], ahead: Held | None
    ) -> None:
        """Give everybody the states that go into the next layer."""
        for walker, ops, tensors in done:
            if ops:
                alone = ahead is None and len(stream.live) == 1  # `ahead` is for others, also for those that failed
                own = stream.states if alone else self._held()
                self._rerun([walker], stream.states, own, number, ops, tensors)
                if not alone:
                    stream.walkers.remove(walker)
                    self.streams.append(_Stream([walker], own))
        same = [walker for walker, ops, _ in done if not ops]
        if ahead is None and same:
            self._rerun(same, stream.states, stream.states, number)
        elif ahead is not None and ahead is not stream.states:
            stream.states.clear()
            stream.states = ahead

    def _rerun(
        self,
        walkers: list[Walker],
        states: Held,
        to: Held,
        number: int,
        ops: Sequence[Op] = (),
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """From `states` through the layer, as `ops` leave it, and on to `to`."""
        assert self.material is not None
        info = self.loaded.info
        with self._failing(walkers), self.watch.on(walkers), pruned(self.loaded, Plan.of(info, ops, tensors)):
            for index in range(len(self.material)):
                to[index] = self.passage.through(self.material.batch(index).inputs, number, states[index])

    @contextmanager
    def _failing(self, walkers: Sequence[Walker]) -> Iterator[None]:
        """What is raised inside puts these walkers out, and nobody else; an interrupt goes on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            for walker in walkers:
                walker.error = walker.error or error

    def _held(self) -> Held:
        return Held(Room(0) if self.material is None else self.material.room, self.loaded.device)

    def _bytes_held(self, number: int, statistics: int) -> int:
        """What a walker would hold alone: the batches, one state each behind the first layer, and its statistics."""
        assert self.material is not None
        return self.material.nbytes + (self.material.state_bytes if number else 0) + statistics

    def _charge(self, walker: Walker, number: int) -> None:
        """A sequential thinner runs each layer twice: to see what goes in, and to go on through what it has left."""
        assert self.material is not None
        times = 2 if walker.leaves and number < self.last else 1
        walker.layer_forwards += times * self.material.samples
        walker.token_layers += times * self.material.tokens


@contextmanager
def _peak(walkers: Sequence[Walker], device: torch.device) -> Iterator[None]:
    """On CUDA the walkers' peak is what torch has measured; elsewhere what was counted."""
    with torch_peak(device) as peak:
        yield
    for walker in walkers if peak.allocated is not None else ():
        walker.peak = peak.allocated
