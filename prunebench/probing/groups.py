"""What each head group and each MLP channel weighs: sums over all rows and columns that go with it.

With w a weight, g the gradient of the loss of all samples (the mean of theirs) and a the mean of the squared gradients
of single samples, the terms of LLM-Pruner (arXiv 2305.11627) are

- ``taylor_first``: |w g|, g added up over samples before the absolute value;
- ``taylor_second``: |w a w|, a as the diagonal of the empirical Fisher information in the place of the Hessian;
- ``taylor_mix``: |w g − ½ w a w|, signs kept until both are added;
- ``taylor_vectorize``: |Σ w g| over each row (column) of a matrix by itself;
- ``l1``, ``l2``: |w| and w².

Terms are added up within each row or column, then over the rows and columns of a group. Biases and norms do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunebench.coupled import WIDTHS, Coupling, Member, Width, coupled_groups
from prunebench.errors import CalibrationError
from prunebench.measure.memory import torch_peak
from prunebench.probing.weights import added, check_weights, finite_losses, only_these_require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import LoadedModel
    from prunebench.probing.counts import Counts
    from prunebench.probing.questions import Batch

__all__ = [
    "SAMPLE_WISE",
    "WHOLE",
    "Couplings",
    "Importance",
    "couplings",
    "gradient_rows",
    "grouped",
    "members_of",
    "weight_rows",
]

Importance = Literal["taylor_first", "taylor_second", "taylor_mix", "taylor_vectorize", "l1", "l2"]
WHOLE: tuple[Importance, ...] = ("taylor_first", "taylor_vectorize")
"""These need the gradient of all samples together alone."""

SAMPLE_WISE: tuple[Importance, ...] = ("taylor_second", "taylor_mix")
"""These need that of each sample by itself too: one sample per pass."""

Couplings = Mapping[int, Mapping[Width, Coupling]]
"""Layer → ``heads`` and ``channels`` → what goes together."""


def couplings(loaded: LoadedModel, layers: Iterable[int]) -> Couplings:
    """The groups of some layers; weights on the meta device will do.

    Raises:
        PlanError: heads or channels of a layer cannot be told apart, with the reason.
    """
    config = loaded.adapter.text_config(loaded.model)
    found: dict[int, dict[Width, Coupling]] = {}
    for layer in layers:
        groups = coupled_groups(loaded.layers[layer], config)
        found[layer] = {width: groups.need(width, layer) for width in WIDTHS}
    return found


def members_of(groups: Couplings) -> list[tuple[int, Width, Member]]:
    """All matrices with what they are cut by, in one order."""
    return [
        (layer, width, member) for layer, kinds in groups.items() for width in WIDTHS for member in kinds[width].members
    ]


def grouped(
    rows: Sequence[np.ndarray], groups: Couplings, *, interleaved: bool = False
) -> dict[int, dict[Width, np.ndarray]]:
    """Sums of each group from those of its rows and columns.

    Args:
        rows: one array per member of `members_of`.
        groups: what goes together.
        interleaved: give row i of a matrix with more rows than the key projection to row i modulo that number, as the
            published code does: query head h then counts for key-value head h mod n, and not for the one that it reads.

    Returns:
        layer → ``heads`` → (key-value heads,), ``channels`` → (channels,).
    """
    taken = iter(rows)
    found: dict[int, dict[Width, np.ndarray]] = {}
    for layer, kinds in groups.items():
        found[layer] = {}
        for width in WIDTHS:
            coupling = kinds[width]
            least = min(member.width for member in coupling.members)
            total = np.zeros(coupling.groups)
            for _ in coupling.members:
                values = next(taken)
                if interleaved:
                    values = values.reshape(-1, coupling.groups * least).sum(0)
                total += values.reshape(coupling.groups, -1).sum(1)
            found[layer][width] = total
    return found


def weight_rows(loaded: LoadedModel, groups: Couplings, importance: Literal["l1", "l2"]) -> list[np.ndarray]:
    """Σ |w| or Σ w² of each row or column, float64, one array per member.

    Raises:
        CalibrationError: weights that are offloaded or quantised, or not finite.
    """
    import torch

    check_weights(loaded, gradients=False)
    with torch.no_grad():
        return [
            _along(member, weight.abs() if importance == "l1" else weight.float().square())
            for (_, _, member), weight in zip(members_of(groups), _weights(loaded, groups), strict=True)
        ]


def gradient_rows(
    loaded: LoadedModel,
    groups: Couplings,
    importances: Sequence[Importance],
    made: Iterable[Batch],
    n_samples: int,
    counts: Counts,
) -> dict[str, list[np.ndarray]]:
    """Sums of each row or column by the terms at the head of this module, float64, one array per member.

    Gradients are added up in float32 in memory of their own: one copy of the weights of these layers, two where squares
    are needed, beside that of the backward pass at hand. ``.grad`` of a parameter is neither read nor written.

    Args:
        loaded: the dense model.
        groups: of the layers that are asked about.
        importances: which terms.
        made: batches; of one sample each for `SAMPLE_WISE`.
        n_samples: in all batches.
        counts: gets the passes, and the bytes of all gradients that are held at one time (on CUDA what torch measured).

    Raises:
        CalibrationError: weights that gradients cannot be trusted of, or a loss or gradient that is not finite.
    """
    import torch

    check_weights(loaded, gradients=True)
    weights, squares = _weights(loaded, groups), any(name in SAMPLE_WISE for name in importances)
    sums: list[Tensor | None] = [None] * len(weights)
    acc: list[Tensor | None] = [None] * len(weights)
    with torch_peak(loaded.device) as peak, only_these_require(loaded.model, weights), torch.enable_grad():
        for batch in made:
            found = list(torch.autograd.grad(finite_losses(loaded, batch).sum(), weights, allow_unused=True))
            for index in range(len(found)):
                gradient, found[index] = found[index], None  # one after the other makes room
                if gradient is not None:
                    sums[index] = added(sums[index], gradient.float() / n_samples)
                    if squares:
                        acc[index] = added(acc[index], gradient.float().square_().div_(n_samples))
            counts.add(loaded.info.n_layers, len(batch.rows), batch.inputs.n_tokens)
            counts.backward_passes += len(batch.rows)
    counted = sum(weight.numel() * (4 * (1 + squares) + weight.element_size()) for weight in weights)
    counts.held(counted if peak.allocated is None else peak.allocated)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in importances}
    with torch.no_grad():
        for (layer, _, member), weight, g, a in zip(members_of(groups), weights, sums, acc, strict=True):
            for name in importances:
                values = _terms(name, member, weight.float(), g, a)
                if not np.isfinite(values).all():
                    raise CalibrationError(
                        f"gradients of {member.module} in layer {layer} are not finite: try --dtype float32"
                    )
                rows[name].append(values)
    return rows


def _terms(name: Importance, member: Member, weight: Tensor, g: Tensor | None, a: Tensor | None) -> np.ndarray:
    if g is None:  # nothing that the loss depends on went through it
        return np.zeros(weight.shape[0 if member.axis == "out" else 1])
    if name == "taylor_second":
        return _along(member, (weight * a * weight).abs_())
    salience = weight * g
    if name == "taylor_vectorize":
        return np.abs(_along(member, salience))
    return _along(member, (salience - 0.5 * weight * a * weight if name == "taylor_mix" else salience).abs_())


def _along(member: Member, values: Tensor) -> np.ndarray:
    """Sums over each row of (out, in), or over each column where those are what is cut."""
    import torch

    return values.sum(1 if member.axis == "out" else 0, dtype=torch.float64).cpu().numpy()


def _weights(loaded: LoadedModel, groups: Couplings) -> list[nn.Parameter]:
    return [loaded.layers[layer].get_submodule(member.module).weight for layer, _, member in members_of(groups)]
