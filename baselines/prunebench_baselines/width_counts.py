"""How many head groups and MLP channels go from each layer, so that a share of the parameters goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Room", "counts_for_params", "counts_for_ratio"]


@dataclass(frozen=True)
class Room:
    """What one layer has to give; one head group and one channel (or a multiple of them) always stay.

    Attributes:
        heads: key-value head groups.
        head_params: weights and biases of one.
        head_rows: rows of the key projection in one.
        channels: of the MLP.
        channel_params: weights and biases of one.
        multiple: of which the number of kept channels is one, where any go.
    """

    heads: int
    head_params: int
    head_rows: int
    channels: int
    channel_params: int
    multiple: int = 1

    @property
    def params(self) -> int:
        """Of all groups."""
        return self.heads * self.head_params + self.channels * self.channel_params

    @property
    def most_channels(self) -> int:
        """That may go."""
        return max(0, self.channels - self.multiple)

    @property
    def most(self) -> int:
        """Parameters that may go."""
        return (self.heads - 1) * self.head_params + self.most_channels * self.channel_params

    def channels_near(self, wanted: float) -> int:
        """The number of channels to remove that is nearest to `wanted`; the smaller of two that are as near."""
        steps = (self.channels - wanted) / self.multiple
        kept = {self.multiple * max(1, step) for step in (math.floor(steps), math.ceil(steps))} | {self.channels}
        return min((self.channels - k for k in kept if k <= self.channels), key=lambda n: (abs(n - wanted), n))


def counts_for_ratio(room: Room, ratio: float) -> tuple[int, int]:
    """Head groups and channels that go where `ratio` of both is asked for, rounded as published.

    n − int(n (1 − ratio)) rows or channels; of rows as many whole heads as fit.
    """
    rows, channels = (n - int(n * (1.0 - ratio)) for n in (room.heads * room.head_rows, room.channels))
    return min(rows // room.head_rows, room.heads - 1), room.channels_near(min(channels, room.most_channels))


def counts_for_params(rooms: Mapping[int, Room], params: float) -> dict[int, tuple[int, int]]:
    """Head groups and channels that go, by layer, so that their parameters come as near to `params` as can be.

    All layers lose the same share: of head groups the nearest whole number, of channels what is left to do, where a
    layer makes up for what the ones in front of it were rounded by.

    Args:
        rooms: what each layer has; together at least `params` that may go.
        params: how many parameters are to go.
    """
    ratio = params / sum(room.params for room in rooms.values())
    heads = {n: min(math.floor(ratio * room.heads + 0.5 + 1e-9), room.heads - 1) for n, room in rooms.items()}
    in_channels = sum(room.most_channels * room.channel_params for room in rooms.values())

    def left() -> float:
        return params - sum(count * rooms[n].head_params for n, count in heads.items())

    for _ in range(max(room.heads for room in rooms.values())):
        for n, room in rooms.items():
            if left() < 0 and heads[n] > 0:  # the heads alone are too many already
                heads[n] -= 1
            elif left() > in_channels and heads[n] < room.heads - 1:  # the channels cannot do the rest
                heads[n] += 1
    channels = dict.fromkeys(rooms, 0)
    share = left() / max(1, sum(room.channels * room.channel_params for room in rooms.values()))
    owed = 0.0
    for part in (share, 0.0):  # the second time for what the last layers could not make up for
        for n, room in rooms.items():
            owed += part * room.channels * room.channel_params
            now = room.channels_near(channels[n] + owed / room.channel_params)
            owed -= (now - channels[n]) * room.channel_params
            channels[n] = now
    return {n: (heads[n], channels[n]) for n in rooms}
