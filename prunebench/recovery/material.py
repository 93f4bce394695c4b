"""What a recovery works on, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunebench import compensation
from prunebench.adapter import DecoderInputs, LoadedModel
from prunebench.calibration.samples import Sample
from prunebench.errors import RecoveryError
from prunebench.ops import DropLayer, Op, canonical_ops
from prunebench.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Material", "Recovered", "check_weights", "real_tokens", "removed_runs"]


@dataclass(frozen=True)
class Material:
    """The dense model, the calibration samples, and how a batch of them is encoded."""

    loaded: LoadedModel
    samples: Sequence[Sample]
    encode: Callable[[Sequence[Sample]], DecoderInputs]

    def batch_size(self, asked: int) -> int:
        """Samples that go through the model together: one where batching would change answers."""
        return asked if self.loaded.adapter.batching else 1

    def batch(self, rows: Sequence[int]) -> DecoderInputs:
        """Decoder inputs of some samples, in tensors that gradients may pass."""
        import torch

        from prunebench.probing.questions import outside_inference

        with torch.no_grad():
            return outside_inference(self.encode([self.samples[row] for row in rows]))

    def batches(self, size: int) -> list[list[int]]:
        """All samples in their own order."""
        rows, size = list(range(len(self.samples))), self.batch_size(size)
        return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass
class Recovered:
    """What a method came to.

    Attributes:
        ops: of the plan that comes out, all of them.
        tensors: name → values, those of the plan that went in included where they are still used.
        notes: facts for the plan's provenance.
        warnings: lines for the user and the plan.
        forward_passes: of single samples through the model, a pass that was stopped early counted as one.
        backward_passes: of single samples.
        tokens: that went through the model, without padding.
        seconds: over all sittings where training was resumed.
    """

    ops: tuple[Op, ...]
    tensors: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    forward_passes: int = 0
    backward_passes: int = 0
    tokens: int = 0
    seconds: float = 0.0


def removed_runs(plan: Plan) -> list[tuple[int, int]]:
    """Runs of neighbouring layers that are dropped whole, half open: ``[(3, 5), (9, 10)]`` for layers 3, 4 and 9."""
    return compensation.removed_runs(op.layer for op in canonical_ops(plan.ops) if isinstance(op, DropLayer))


def check_weights(module: nn.Module, what: str, *, trained: bool) -> None:
    """Refuse weights that a recovery cannot compute with.

    Raises:
        RecoveryError: they are quantised, not in memory, or of too small a range to be trained.
    """
    import torch

    for name, parameter in module.named_parameters():
        if parameter.device.type == "meta":
            raise RecoveryError(f"{what}: {name} is not in memory (offloaded): recover on a device that holds it")
        if not parameter.is_floating_point():
            raise RecoveryError(f"{what}: {name} is quantised ({parameter.dtype}): load the model in --dtype bfloat16")
        if trained and parameter.dtype == torch.float16:
            raise RecoveryError(
                f"{what}: float16 has too small a range to be trained in: use --dtype bfloat16 or float32"
            )


def real_tokens(inputs: DecoderInputs, value: Tensor) -> Tensor:
    """(tokens, hidden): the rows of (batch, tokens, hidden) that are not padding."""
    return value[inputs.attention_mask.bool().to(value.device)]
