"""Hidden states between layers, kept so that only what comes after them has to run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prunebench.probing.units import Left, prefix

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.probing.counts import Counts
    from prunebench.probing.passage import Passage
    from prunebench.probing.questions import Batch

__all__ = ["MEMORY_BYTES", "States"]

MEMORY_BYTES = 2 << 30


class States:
    """States by batch and boundary, up to a bound in bytes.

    A state depends on what is left out in front of its boundary and on nothing else, so it outlives a change behind it.

    Args:
        passage: runs the model.
        counts: told what ran.
        memory: bound in bytes of what is kept between calls; of the batch at hand one state is held beyond it.
    """

    def __init__(self, passage: Passage, counts: Counts, memory: int) -> None:
        self.passage, self.counts, self.memory = passage, counts, memory
        self._kept: dict[tuple[int, int], tuple[tuple, Tensor]] = {}
        self._reserved = 0

    @property
    def used(self) -> int:
        """Bytes that are kept."""
        return self._reserved + sum(_bytes(state) for _, state in self._kept.values())

    def reserve(self, tensor: Tensor) -> bool:
        """Whether a tensor that someone else keeps fits too; then it counts from now on."""
        fits = self.used + _bytes(tensor) <= self.memory
        self._reserved += _bytes(tensor) if fits else 0
        return fits

    def keep_only(self, left: Left) -> None:
        """Forget the states that depend on something else than `left` being left out."""
        self._kept = {
            key: (before, state) for key, (before, state) in self._kept.items() if before == prefix(left, key[1])
        }

    def walk(self, batch: Batch, left: Left, boundaries: Sequence[int]) -> Callable[[int], Tensor | None]:
        """A function that gives the states at `boundaries`, asked for in ascending order; None at boundary 0.

        Layers run at most once on the way, as far as needed.
        """
        wanted = sorted({boundary for boundary in boundaries if boundary})
        held: dict[int, Tensor] = {}

        def at(boundary: int) -> Tensor | None:
            if boundary == 0:
                return None
            if boundary not in held:
                kept = {b: state for (number, b), (_, state) in self._kept.items() if number == batch.number}
                near = max((b for b in (*held, *kept) if b <= boundary), default=0)
                state = held.get(near, kept.get(near))
                held.clear()
                if near == boundary:
                    held[boundary] = state  # type: ignore[assignment]
                else:
                    held.update(self._advance(batch, left, near, state, boundary, set(wanted) - set(kept)))
            return held[boundary]

        return at

    def _advance(
        self, batch: Batch, left: Left, near: int, state: Tensor | None, boundary: int, wanted: set[int]
    ) -> dict[int, Tensor]:
        """Run from `near` to `boundary`, and on to what is wanted further as far as there is room to keep it."""
        size = _bytes(state if state is not None else batch.inputs.embeds)
        room = max(0, self.memory - self.used) // max(size, 1)
        on_the_way = [boundary, *sorted(b for b in wanted if b > boundary)[: max(0, room - 1)]]
        found = self.passage.states(batch.inputs, on_the_way, start=near, state=state, left=_behind(left, near))
        self.counts.add(self.passage.cost(near, on_the_way[-1], left), len(batch.rows), batch.inputs.n_tokens)
        for b in on_the_way[:room]:
            self._kept[batch.number, b] = (prefix(left, b), found[b])
        return found


def _behind(left: Left, boundary: int) -> Left:
    return {layer: parts for layer, parts in left.items() if layer >= boundary}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
