"""What has to hold of an adapter's model when layers go: the truth test, restored state, saved and loaded again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunebench.adapter import LoadedModel
from prunebench.errors import PlanError
from prunebench.plan import Plan
from prunebench.quiet import quiet_transformers
from prunebench.surgery import pruned, record_kept
from prunebench.testing.adapter_case import LARGE, AdapterCase, on_real_tokens
from prunebench.testing.report import Checklist, Failed, Skipped
from prunebench.testing.state import ModelState

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ON_PRUNED", "drop_patterns"]

ON_PRUNED = Checklist()


def drop_patterns(n_layers: int, protected: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Layers to drop together: first, last, neighbours, far ones, every second, all that may go but one."""
    free = [layer for layer in range(n_layers) if layer not in protected]
    if not free:
        return []
    middle = len(free) // 2
    most = free if protected else free[1:]
    found = [free[:1], free[-1:], free[middle - 1 : middle + 1], free[:2], free[1::2], free[::2], most]
    if len(free) > 3:
        found.insert(4, [free[1], free[-2]])
    return list(dict.fromkeys(tuple(drop) for drop in found if 0 < len(drop) < n_layers))


@contextmanager
def _as_identity(case: AdapterCase, drop: tuple[int, ...]) -> Iterator[None]:
    """The layers of `drop` pass their input on, in their place: what compaction has to be equal to."""
    tuples = _returns_tuple(case)

    def identity(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if tuples else hidden

    # On the module itself, so that whatever the decoder reads of the layer stays there.
    layers = [case.loaded.layers[layer] for layer in drop]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = identity
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _returns_tuple(case: AdapterCase) -> bool:
    found: list[bool] = []
    handle = case.loaded.layers[0].register_forward_hook(lambda _m, _a, output: found.append(isinstance(output, tuple)))
    try:
        case.logits(case.inputs[0], keep=1)
    finally:
        handle.remove()
    return bool(found) and found[0]


def _plans(case: AdapterCase) -> list[Plan]:
    """Plans that fit the model; what the architecture cannot do is refused by surgery in one line."""
    info, plans, refusal = case.loaded.info, [], None
    for drop in drop_patterns(info.n_layers, info.protected):
        plan = Plan.drop(info, drop)
        try:
            with pruned(case.loaded, plan):
                plans.append(plan)
        except PlanError as error:
            refusal = error
    if not plans:
        raise refusal or Skipped("every layer is protected")
    return plans


def _logits(case: AdapterCase) -> list[Tensor]:
    return [on_real_tokens(inputs, case.logits(inputs)) for inputs in case.inputs]


@ON_PRUNED
def truth(case: AdapterCase) -> None:
    """A pruned model equals the dense one with the dropped layers as identities in place."""
    for plan in _plans(case):
        drop = plan.removed_layers
        with _as_identity(case, drop):
            expected = _logits(case)
        with pruned(case.loaded, plan):
            if len(case.loaded.layers) != len(plan.kept_layers):
                raise Failed(f"without {list(drop)} there are {len(case.loaded.layers)} layers: decoder() is not live")
            found = _logits(case)
        for mine, theirs in zip(found, expected, strict=True):
            case.same(
                f"without layers {list(drop)}, against identities in their place (a list with an entry per layer "
                "may be stale: text_config() has to return the decoder's own)",
                mine,
                theirs,
                tight=True,
            )


@ON_PRUNED
def layers_matter(case: AdapterCase) -> None:
    """Dropping layers changes the logits, so the layers that are removed are those that run."""
    import torch

    dense = _logits(case)
    for plan in _plans(case):
        with pruned(case.loaded, plan):
            if all(torch.equal(a, b) for a, b in zip(_logits(case), dense, strict=True)):
                raise Failed(f"without layers {list(plan.removed_layers)} the logits are those of the dense model")


@ON_PRUNED
def pruned_cache(case: AdapterCase) -> None:
    """Cache on equals cache off on the pruned model too: `layer_idx` fits the cache."""
    for plan in _plans(case):
        with pruned(case.loaded, plan):
            try:
                case.cache_agrees(steps=2)
            except Failed as failure:
                raise Failed(f"without layers {list(plan.removed_layers)}, {failure}") from failure


@ON_PRUNED
def restored(case: AdapterCase) -> None:
    """After pruning the model is as before, in its weights, configuration, layer numbers and hooks."""
    before = ModelState.of(case.loaded)
    for plan in _plans(case):
        with pruned(case.loaded, plan):
            pass
    if change := before.change(ModelState.of(case.loaded)):
        raise Failed(f"after the layers came back, there is a change in {change}: layers_removed() has to undo its own")


@ON_PRUNED
def restored_after_error(case: AdapterCase) -> None:
    """The model is as before also if the work on the pruned model fails."""

    class Interrupted(Exception):
        pass

    before, plan = ModelState.of(case.loaded), _plans(case)[-1]
    try:
        with pruned(case.loaded, plan):
            raise Interrupted
    except Interrupted:
        pass
    if change := before.change(ModelState.of(case.loaded)):
        raise Failed(f"after an error in the body, there is a change in {change}")


@ON_PRUNED
def empty_plan(case: AdapterCase) -> None:
    """The empty plan changes nothing, bit for bit."""
    import torch

    before, dense = ModelState.of(case.loaded), _logits(case)
    with pruned(case.loaded, Plan.drop(case.loaded.info)):
        if change := before.change(ModelState.of(case.loaded)):
            raise Failed(f"the empty plan changes {change}")
        if not all(torch.equal(a, b) for a, b in zip(_logits(case), dense, strict=True)):
            raise Failed("the empty plan changes the logits")


@ON_PRUNED
def save_and_reload(case: AdapterCase) -> None:
    """Pruned, saved and loaded by plain `from_pretrained` it has all keys and equal logits."""
    import torch

    loaded = case.loaded
    save, read = getattr(loaded.model, "save_pretrained", None), getattr(type(loaded.model), "from_pretrained", None)
    if save is None or read is None:
        raise Skipped("the model has no save_pretrained and from_pretrained")
    if loaded.info.model_bytes > LARGE:
        raise Skipped(f"the model has more than {LARGE >> 30} GB: `prunebench export` writes it and compares")
    for plan in (_plans(case)[0], _plans(case)[-1]):
        with tempfile.TemporaryDirectory() as folder, quiet_transformers():
            with pruned(loaded, plan), _marked(loaded, plan):
                expected = _logits(case)
                save(folder)
            again, report = read(folder, dtype=next(loaded.layers.parameters()).dtype, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if wrong := sorted(map(str, report.get(key) or ())):
                raise Failed(f"reloaded without layers {list(plan.removed_layers)}: {key.replace('_', ' ')} {wrong[0]}")
        other = replace(loaded, model=again.to(loaded.device).eval())
        loaded.adapter.layers_removed(other.model, plan.kept_layers)
        for inputs, theirs in zip(case.inputs, expected, strict=True):
            with torch.inference_mode():
                mine = on_real_tokens(inputs, loaded.adapter.forward(other, inputs))
            case.same(f"reloaded without layers {list(plan.removed_layers)}", mine, theirs, tight=True)


@contextmanager
def _marked(loaded: LoadedModel, plan: Plan) -> Iterator[None]:
    """The note that a permanent pruning leaves in the configuration; what saving writes into it is taken back."""
    config = loaded.model.config
    before = dict(vars(config))
    try:
        record_kept(config, plan)
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)


@ON_PRUNED
def plan_at_loading(case: AdapterCase) -> None:
    """Loaded with a plan, it is the model that was pruned in memory."""
    import torch

    case.need_loading()
    for plan in (_plans(case)[0], _plans(case)[-1]):
        other = case.cls().load(replace(case.options, plan=plan))
        if len(other.layers) != len(plan.kept_layers):
            raise Failed(
                "load() ignores options.plan: read the kept layers only (prunebench.checkpoint.load_pretrained), "
                "or end with prune(loaded, options.plan)"
            )
        if other.plan != plan:
            raise Failed("load() took the plan, but LoadedModel.plan does not say so: set it to options.plan")
        if other.info != case.loaded.info:
            raise Failed("loaded with a plan the ModelInfo differs: it has to describe the dense model")
        with pruned(case.loaded, plan):
            expected = _logits(case)
        for inputs, theirs in zip(case.inputs, expected, strict=True):
            with torch.inference_mode():
                mine = on_real_tokens(inputs, other.adapter.forward(other, inputs))
            case.same(f"loaded without layers {list(plan.removed_layers)}", mine, theirs, tight=True)


@ON_PRUNED
def untouched(case: AdapterCase) -> None:
    """After all of this the model is as it was loaded."""
    loaded = case.loaded
    if case.state is not None and (change := case.state.change(ModelState.of(loaded))):
        raise Failed(f"encode(), forward() or generate() changed {change}: leave the model as it was loaded")
