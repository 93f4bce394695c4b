"""Low-rank adapters on the layers that stay, trained on the calibration samples' answers and merged into the weights.

The adapters are peft's (https://github.com/huggingface/peft). They stand around the model's own linear modules for the
length of the training; the weights that they adapt take no gradient and are never written to.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunebench import surgery
from prunebench.errors import MissingExtra, RecoveryError
from prunebench.ops import Fold, Mask, SetWeights
from prunebench.plan import Plan
from prunebench.recovery.checkpoint import Checkpoint
from prunebench.recovery.copies import all_names
from prunebench.recovery.material import Material, Recovered, check_weights
from prunebench.recovery.spec import Lora
from prunebench.recovery.training import Progress
from prunebench.recovery.tune import recovered, train_on_answers

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["adapt_layers", "adapters", "merged"]

ADAPTER = "default"
"""What peft calls an adapter that is not named."""


def adapt_layers(
    plan: Plan,
    material: Material,
    recovery: Lora,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """Train adapters on all layers that stay; the plan that comes out sets the weights that they come to.

    Raises:
        MissingExtra: peft is not installed.
        RecoveryError: the plan masks weights, a layer has nothing to adapt or cannot be trained, or training diverges.
        CalibrationError: samples without answers.
    """
    if masks := [op for op in plan.ops if isinstance(op, Mask)]:
        raise RecoveryError(
            f"adapters would fill the zeros of masked weights (layer {masks[0].layer}): "
            "use --recover tune, which keeps them"
        )
    _need_peft()
    loaded = material.loaded
    given = {op.layer for op in plan.ops if isinstance(op, (Fold, SetWeights))}
    values: dict[int, dict[str, Tensor]] = {}
    with surgery.pruned(loaded, plan):
        layers = {str(n): loaded.layers[place] for place, n in enumerate(plan.kept_layers)}
        for n, layer in layers.items():
            check_weights(layer, f"layer {n}", trained=True)
        before = {n: dict(layer.named_parameters()) for n, layer in layers.items()}
        with adapters(loaded.model, layers, recovery) as found:
            done = train_on_answers(
                material,
                recovery,
                {n: _parameters(modules) for n, modules in found.items()},
                checkpoint=checkpoint,
                progress=progress,
                mode=lambda training: _dropping(found, training),
            )
            new = {
                # On the CPU at once, where plans keep tensors: a GPU that holds the model need not hold it twice.
                n: {f"{path}.weight": merged(module, done.values[n], path).cpu() for path, module in modules.items()}
                for n, modules in found.items()
            }
        for n, layer in layers.items():
            # An operation that is replaced by these values may have given others too.
            rest = {name: p.detach().to("cpu", copy=True) for name, p in before[n].items()} if int(n) in given else {}
            values[int(n)] = all_names(layer, {**rest, **new[n]})
    notes = {"adapted_layers": [int(n) for n in layers], "adapted_modules": sum(map(len, found.values()))}
    return recovered(plan, done, values, notes)


@contextmanager
def adapters(
    model: nn.Module, layers: Mapping[str, nn.Module], recovery: Lora
) -> Iterator[dict[str, dict[str, nn.Module]]]:
    """Put adapters around the linear modules of `layers`; afterwards the modules stand where they stood.

    Nothing but the adapters takes a gradient meanwhile. Initial values follow from the seed and the layer alone.

    Args:
        model: the whole model.
        layers: name → module of it.
        recovery: rank, scale, dropout, targets, seed.

    Yields:
        layer → path of a linear module in it → peft's module in its place.

    Raises:
        RecoveryError: a layer without a linear module that is wanted.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    places: list[tuple[nn.Module, str, nn.Module]] = []
    found: dict[str, dict[str, nn.Module]] = {}
    try:
        for name, layer in layers.items():
            paths = _targets(name, layer, recovery)
            for path in paths:
                owner, _, own = path.rpartition(".")
                places.append((layer.get_submodule(owner), own, layer.get_submodule(path)))
            config = LoraConfig(
                r=recovery.rank,
                lora_alpha=recovery.lora_alpha,
                lora_dropout=recovery.dropout,
                target_modules=[f"layer.{path}" for path in paths],
                bias="none",
            )
            # A box of its own: peft leaves notes on what it is handed.
            box = torch.nn.ModuleDict({"layer": layer})
            training = {part: part.training for part in layer.modules()}
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a model without a configuration, which the box has not
                torch.manual_seed(1_000_003 * recovery.seed + int(name))
                inject_adapter_in_model(config, box)
            for part, was in training.items():
                part.training = was
            found[name] = {path: layer.get_submodule(path) for path in paths}
            for module in found[name].values():
                module.train(False)
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield found
    finally:
        for owner_module, own, module in reversed(places):
            owner_module._modules[own] = module
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def merged(module: Any, values: Mapping[str, Tensor], path: str) -> Tensor:
    """W + (alpha / r) B A, computed in float32, in the number format of W.

    Args:
        module: peft's, around W (out, in).
        values: trained ``{path}.A`` (r, in) and ``{path}.B`` (out, r).
        path: of the module in its layer.
    """
    weight = module.get_base_layer().weight.detach()
    change = values[f"{path}.B"].float() @ values[f"{path}.A"].float()
    return (weight.float() + module.scaling[ADAPTER] * change).to(weight.dtype)


def _targets(name: str, layer: nn.Module, recovery: Lora) -> list[str]:
    from torch import nn

    linear = [path for path, module in layer.named_modules() if isinstance(module, nn.Linear) and path]
    found = [path for path in linear if recovery.wants(path)]
    if not found:
        have = ", ".join(sorted({path.rpartition(".")[2] for path in linear})) or "none"
        raise RecoveryError(
            f"layer {name} has no linear module that recover.targets={recovery.targets} names (its own are: {have})"
        )
    return found


def _parameters(modules: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    sides = {"A": "lora_A", "B": "lora_B"}
    return {
        f"{path}.{side}": getattr(module, attribute)[ADAPTER].weight
        for path, module in modules.items()
        for side, attribute in sides.items()
    }


def _dropping(found: Mapping[str, Mapping[str, Any]], training: bool) -> None:
    for modules in found.values():
        for module in modules.values():
            module.lora_dropout.train(training)


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtra("peft", "lora", "--recover lora") from error
