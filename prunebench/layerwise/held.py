"""What a sweep holds between layers: the batches, and the hidden states of every stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prunebench.probing.questions import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Held", "Material", "Room", "nbytes"]


class Room:
    """Space on the model's device, up to a bound in bytes; what does not fit goes to CPU memory.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> bool:
        """Whether so many bytes more fit; they are counted if so."""
        fits = self.used + size <= self.limit
        self.used += size if fits else 0
        return fits

    def give(self, size: int) -> None:
        self.used -= size


class Material:
    """The batches of a sweep, made once: encoded prompts with their answers.

    Args:
        batches: in order; taken one after the other, so that no more than fit are on the device at once.
        device: of the model.
        room: what they may take there.

    Attributes:
        nbytes, state_bytes: of all batches, and of one hidden state for each.
        samples, tokens: in all, without padding.
        seconds: wall time that making them took.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device, room: Room) -> None:
        from dataclasses import replace

        self.device, self.room, self.seconds = device, room, 0.0
        self.batches = [b if room.take(nbytes(b.inputs)) else replace(b, inputs=b.inputs.to("cpu")) for b in batches]
        self.nbytes = sum(nbytes(b.inputs) for b in self.batches)
        self.state_bytes = sum(nbytes(b.inputs.embeds) for b in self.batches)
        self.samples = sum(len(b.rows) for b in self.batches)
        self.tokens = sum(b.inputs.n_tokens for b in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, number: int) -> Batch:
        """On the model's device."""
        from dataclasses import replace

        found = self.batches[number]
        return replace(found, inputs=found.inputs.to(self.device))


class Held:
    """One hidden state per batch."""

    def __init__(self, room: Room, device: torch.device) -> None:
        self._room, self._device = room, device
        self._states: dict[int, tuple[Tensor, bool]] = {}

    def __getitem__(self, number: int) -> Tensor | None:
        """On the device that it came from, or the model's; None where there is none yet."""
        state = self._states.get(number)
        return None if state is None else state[0] if state[1] else state[0].to(self._device)

    def __setitem__(self, number: int, state: Tensor | None) -> None:
        before = self._states.pop(number, None)
        if before is not None and before[1]:
            self._room.give(nbytes(before[0]))
        if state is not None:
            here = self._room.take(nbytes(state))
            self._states[number] = (state if here else state.cpu(), here)

    @property
    def nbytes(self) -> int:
        return sum(nbytes(state) for state, _ in self._states.values())

    def clear(self) -> None:
        for number in list(self._states):
            self[number] = None


def nbytes(value: Any) -> int:
    """Of all tensors in a value, each counted where it stands."""
    if hasattr(value, "element_size"):
        return int(value.numel() * value.element_size())
    if hasattr(value, "embeds"):
        return sum(map(nbytes, (value.embeds, value.attention_mask, value.groups, value.extra)))
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    return sum(map(nbytes, value)) if isinstance(value, (list, tuple)) else 0
