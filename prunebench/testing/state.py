"""What must not change: weights, configuration, hooks, layer numbers and flags of a model, by value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import LoadedModel
    from prunebench.calibration.trace import Trace

__all__ = ["ModelState", "trace_change"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class ModelState:
    """A model at one moment; tensors as digests, so that it costs no memory."""

    layers: tuple[int, ...]
    tensors: dict[str, str]
    modules: dict[str, tuple[Any, ...]]
    configs: dict[str, str]  # "<owner>.<attribute>" → its value in words
    info: str

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelState:
        """Take the state of `loaded` as it is now."""
        model = loaded.model
        tensors = {name: _digest(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        modules = {
            name: (
                id(module),
                module.training,
                getattr(module, "layer_idx", None),
                "forward" in vars(module),
                *(_count(getattr(module, hooks, {})) for hooks in _HOOKS),
            )
            for name, module in model.named_modules()
        }
        found = {"model": getattr(model, "config", None), "decoder": loaded.adapter.text_config(model)}
        found = {name: config for name, config in found.items() if config is not None}
        configs = {f"{name}.{key}": text for name, config in found.items() for key, text in _config(config).items()}
        return cls(
            tuple(id(layer) for layer in loaded.layers), tensors, modules, configs, loaded.info.model_dump_json()
        )

    def change(self, later: ModelState) -> str | None:
        """The first difference in words, or None where there is none."""
        if self.layers != later.layers:
            return f"the list of decoder layers ({len(self.layers)} before, {len(later.layers)} after)"
        for what, mine, theirs in (
            ("tensor", self.tensors, later.tensors),
            ("module", self.modules, later.modules),
            ("configuration entry", self.configs, later.configs),
        ):
            for name in dict.fromkeys((*mine, *theirs)):
                if mine.get(name) != theirs.get(name):
                    return f"{what} {name or 'model'}{_detail(mine.get(name), theirs.get(name))}"
        return "the ModelInfo" if self.info != later.info else None


def trace_change(before: Trace, after: Trace) -> str | None:
    """The first array or field in which two traces differ, or None."""
    import numpy as np

    if before.meta != after.meta:
        return "its meta data"
    for name in dict.fromkeys((*before.arrays, *after.arrays)):
        if name not in before.arrays or name not in after.arrays:
            return f"the array {name!r}"
        if not np.array_equal(before.arrays[name], after.arrays[name], equal_nan=True):
            return f"the array {name!r}"
    return None


def _digest(tensor: Tensor) -> str:
    import torch

    if tensor.device.type == "meta":  # offloaded: what is not in memory cannot be changed in memory
        return f"meta {tuple(tensor.shape)}"
    flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {hashlib.blake2b(flat).hexdigest()}"


def _count(hooks: dict[int, Any]) -> int:
    """Hooks that are somebody's own: transformers and accelerate add theirs at the first use."""
    owners = [getattr(getattr(hook, "func", hook), "__module__", None) or "" for hook in hooks.values()]
    return sum(owner.partition(".")[0] not in ("transformers", "accelerate") for owner in owners)


def _config(config: Any) -> dict[str, str]:
    to_dict = getattr(config, "to_dict", None)
    return {key: repr(value) for key, value in (to_dict() if callable(to_dict) else vars(config)).items()}


def _detail(before: Any, after: Any) -> str:
    if not isinstance(before, tuple) or not isinstance(after, tuple):
        return " (added)" if before is None else " (removed)" if after is None else ""
    names = ("replaced", "training flag", "layer_idx", "forward", *(hooks.strip("_") for hooks in _HOOKS))
    changed = [name for name, mine, theirs in zip(names, before, after, strict=True) if mine != theirs]
    return f" ({', '.join(changed)})"
