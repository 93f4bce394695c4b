"""What a model in memory is, as text: never where it lies, neither on disk nor in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench import jsonio
from prunebench.surgery import MARK

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel

__all__ = ["model_fingerprint"]


def model_fingerprint(loaded: LoadedModel) -> str:
    """Hash of checkpoint, precision, plan, and of every weight that takes part now.

    Two plans on one model differ in it even where they leave weights of the same names and shapes: each weight counts
    by its values (their sum and the sum of their magnitudes, in float64).
    """
    import torch

    decoder, weights = loaded.decoder, {}
    with torch.no_grad():
        for name, tensor in loaded.model.state_dict(keep_vars=True).items():
            values = tensor.detach()
            if values.is_meta:
                weights[name] = [str(values.dtype), list(values.shape)]
                continue
            sums = (values.sum(dtype=torch.float64), values.abs().sum(dtype=torch.float64))
            weights[name] = [str(values.dtype), list(values.shape), *(float(one).hex() for one in sums)]
    config = loaded.adapter.text_config(loaded.model)
    return jsonio.digest(
        {
            "model": loaded.info.name,
            "revision": loaded.info.revision,
            "dtype": loaded.info.dtype,
            "adapter": f"{type(loaded.adapter).__module__}.{type(loaded.adapter).__qualname__}",
            "plan": loaded.plan.digest if loaded.plan is not None else None,
            "applied": str(getattr(decoder, MARK, None)),
            "pruned": str(getattr(config, "prunebench", None)),
            "layers": len(loaded.layers),
            "weights": weights,
        }
    )[:32]
