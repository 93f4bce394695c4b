"""What can be collected: one function of a `Batch` per statistic; some take a value, as in ``token_states=16``.

A further statistic is one more function and one more row of `STATISTICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.calibration.statistics import importance, pooling, similarity, tokens
from prunebench.errors import BadParameter, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.calibration.batch import Batch

__all__ = ["STATISTICS", "Request", "Statistic", "canonical", "canonical_names", "resolve"]


@dataclass(frozen=True)
class Statistic:
    """How one statistic is computed, and what the pass has to watch for it.

    Attributes:
        compute: batch and value → array name → tensor with one row per sample; its names begin with the statistic's.
        size: (layers, hidden, bytes per number of the model, value) → bytes that one sample takes in the trace.
        default: its value where none is named; None for a statistic that takes no value.
        check: what is allowed as a value, and the words for it.
        watch: of the pass: ``sublayers``, ``mlp``, ``attention`` or ``aggregator``.
    """

    compute: Callable[[Batch, Any], dict[str, Tensor]]
    size: Callable[[int, int, int, Any], int]
    default: int | float | None = None
    check: tuple[Callable[[Any], bool], str] = (lambda value: True, "")
    watch: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Request:
    """A statistic with its value."""

    name: str
    statistic: Statistic
    value: int | float | None

    @property
    def canonical(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"


_COUNT = (lambda m: 1 <= m <= 4096, "a number of tokens per sample, 1 to 4096")
_SHARE = (lambda p: 0 < p <= 1, "a share above 0, at most 1")

STATISTICS: dict[str, Statistic] = {
    "token_cosine": Statistic(similarity.token_cosine, lambda n, d, b, v: 5 * (n + 1) ** 2 * 4),
    "sublayer_cosine": Statistic(
        similarity.sublayer_cosine, lambda n, d, b, v: 5 * n * 2 * 4, watch=frozenset({"sublayers"})
    ),
    "norms": Statistic(similarity.norms, lambda n, d, b, v: 5 * (2 * n + 1) * 4),
    "pooled": Statistic(pooling.pooled, lambda n, d, b, v: 3 * (n + 1) * d * 4),
    "points.last": Statistic(pooling.points_last, lambda n, d, b, v: n * d * 4),
    "points.mean": Statistic(pooling.points_mean, lambda n, d, b, v: n * d * 4),
    "points.aggregator": Statistic(
        pooling.points_aggregator, lambda n, d, b, v: n * d * 4, watch=frozenset({"aggregator"})
    ),
    "attention_importance": Statistic(
        importance.attention_importance, lambda n, d, b, v: 4096 * 4, watch=frozenset({"attention"})
    ),
    "important_cosine": Statistic(
        importance.important_cosine, lambda n, d, b, v: 3 * (n + 1) * 4, 0.5, _SHARE, frozenset({"attention"})
    ),
    "token_states": Statistic(
        tokens.token_states, lambda n, d, b, v: v * ((n + 1) * (b * d + 4 * (b < 4)) + 5), 16, _COUNT
    ),
    "mlp_outputs": Statistic(
        tokens.mlp_outputs, lambda n, d, b, v: v * (n * (b * d + 4 * (b < 4)) + 5), 16, _COUNT, frozenset({"mlp"})
    ),
}
"""Name → statistic. Where one takes a value, its bare name stands for the default."""


def resolve(name: str) -> Request:
    """The statistic that `name` (``token_cosine``, ``important_cosine=0.5``) asks for.

    Raises:
        UnknownName: no such statistic, with the nearest one.
        BadParameter: a value that is not allowed, or one for a statistic that takes none.
    """
    base, _, text = name.partition("=")
    if base not in STATISTICS:
        raise UnknownName("calibration statistic", base, STATISTICS)
    statistic = STATISTICS[base]
    if statistic.default is None:
        if "=" in name:
            raise BadParameter(f"calibration statistic {base!r} takes no value: ask for {base!r}")
        return Request(base, statistic, None)
    value: int | float = statistic.default
    if "=" in name:
        allowed, words = statistic.check
        try:
            value = type(statistic.default)(text)
        except ValueError:
            value = float("nan")
        if not allowed(value):  # also false for what is no number
            raise BadParameter(f"calibration statistic {base!r}: {text!r} is not {words}")
    return Request(base, statistic, value)


def canonical(name: str) -> str:
    """The one spelling of a statistic's name; a name of an array below it keeps its ending."""
    return resolve(name).canonical


def canonical_names(names: Iterable[str]) -> frozenset[str]:
    """Each name in its one spelling, so that two spellings are one request."""
    return frozenset(canonical(name) for name in names)
