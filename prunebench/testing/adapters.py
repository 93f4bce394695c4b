"""What an adapter has to keep to when it loads a model, and in what it says of it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

from prunebench.adapter import LoadedModel
from prunebench.errors import PruneBenchError, first_line, typed_line
from prunebench.testing.adapter_case import AdapterCase
from prunebench.testing.report import Checklist, Failed, Skipped

__all__ = ["ON_LOADING"]

ON_LOADING = Checklist()
MODALITIES = ("text", "image", "video", "audio")


@ON_LOADING
def docstring(case: AdapterCase) -> None:
    """The docstring says which models it serves."""
    if not (vars(case.cls).get("__doc__") or "").strip():
        raise Failed(f"{case.cls.__name__} has no docstring: say which models and modalities it serves")


@ON_LOADING
def declaration(case: AdapterCase) -> None:
    """Name, aliases and modalities are declared, and nothing of the contract is missing."""
    if missing := sorted(getattr(case.cls, "__abstractmethods__", ())):
        raise Failed(f"{case.cls.__name__} does not implement {', '.join(missing)}")
    for name in (getattr(case.cls, "name", None), *case.cls.aliases):
        if not isinstance(name, str) or not name or ":" in name or name != name.strip():
            raise Failed(f"{name!r} is no name that can be typed: use text without a colon")
    if wrong := [name for name in case.cls.modalities if name not in MODALITIES]:
        raise Failed(f"modality {wrong[0]!r} is not one of {', '.join(MODALITIES)}")


@ON_LOADING
def load(case: AdapterCase) -> None:
    """load() gives a dense model in evaluation mode, with its decoder layers."""
    try:
        loaded = case.load()
    except Skipped:
        raise
    except PruneBenchError as error:
        raise Failed(f"{first_line(error)} (weights are given by --model-path, or by LoadOptions)") from error
    except (Exception, SystemExit) as error:
        raise Failed(
            f"load() raised {typed_line(error)}: raise ModelError with one line that says what to do"
        ) from error
    if not isinstance(loaded, LoadedModel):
        raise Failed(f"load() returned {type(loaded).__name__}: return a LoadedModel")
    if loaded.model.training:
        raise Failed("the model is in training mode: call .eval() in load()")
    if not isinstance(loaded.adapter, case.cls):
        raise Failed(f"LoadedModel.adapter is a {type(loaded.adapter).__name__}: pass self")
    if len(loaded.layers) < 2:
        raise Failed(f"decoder() finds {len(loaded.layers)} layers: it has to return the module with all in .layers")


@ON_LOADING
def wrong_folder(case: AdapterCase) -> None:
    """A folder without weights is refused in one line."""
    case.need_loading()
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.cls().load(replace(case.options, path=folder))
        except PruneBenchError as error:
            if len(str(error).splitlines()) != 1:
                raise Failed(f"the error has several lines: {first_line(error)} ...") from error
        except (Exception, SystemExit) as error:
            raise Failed(f"an empty --model-path raises {typed_line(error)}: raise ModelError in one line") from error
        else:
            raise Failed("an empty --model-path is ignored: read options.path, or refuse it")


@ON_LOADING
def info(case: AdapterCase) -> None:
    """The ModelInfo agrees with a recount of layers, parameters, bytes and key-value bytes."""
    from prunebench.measure.cost import weight_bytes

    loaded, found = case.loaded, case.loaded.info
    layers, model = loaded.layers, loaded.model
    cached = _cached_bytes(case)
    counted: dict[str, tuple[Any, Any]] = {
        "n_layers": (found.n_layers, len(layers)),
        "n_layers of the text configuration": (
            found.n_layers,
            getattr(loaded.adapter.text_config(model), "num_hidden_layers", found.n_layers),
        ),
        "hidden_size": (found.hidden_size, case.inputs[0].embeds.shape[-1]),
        "params by layer": ([c.params for c in found.layers], [sum(p.numel() for p in m.parameters()) for m in layers]),
        "bytes by layer": ([c.bytes for c in found.layers], [weight_bytes(m) for m in layers]),
        "model_params": (found.model_params, sum({id(p): p.numel() for p in model.parameters()}.values())),
        "model_bytes": (found.model_bytes, weight_bytes(model)),
        "dtype": (found.dtype, str(next(layers.parameters()).dtype).removeprefix("torch.")),
        "modalities": (sorted(found.modalities), sorted(loaded.adapter.modalities)),
        "adapter": (found.adapter, loaded.adapter.name),
        "protected": (found.protected, tuple(loaded.adapter.protected_layers(model))),
        "kv_bytes_per_token": (found.kv_bytes_per_token, found.kv_bytes_per_token if cached is None else cached),
    }
    for name, (stated, recounted) in counted.items():
        if stated != recounted:
            raise Failed(f"info says {name} = {stated}, it is {recounted}: use prunebench.measure.cost.describe")
    least, most = _language_params(loaded)
    if not least <= found.lm_params <= most:
        counts = f"layers, embeddings, norm and head have {least}, the decoder and the head {most}"
        raise Failed(f"info says lm_params = {found.lm_params}: {counts}; use prunebench.measure.cost.describe")
    if not found.revision:
        raise Failed("info.revision is empty: it has to name the weights (prunebench.measure.cost.checkpoint_revision)")


def _language_params(loaded: LoadedModel) -> tuple[int, int]:
    """Parameters of the language model at least (layers, embeddings, final norm, head) and at most.

    The module that holds the layers may hold more of the language model (learned positions), or towers too.
    """
    model, decoder = loaded.model, loaded.decoder
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    norms = [module for name, module in decoder.named_children() if "norm" in name]
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None

    def count(parts: list[Any]) -> int:
        return sum({id(p): p.numel() for part in parts if part is not None for p in part.parameters()}.values())

    return count([loaded.layers, embedding, *norms, head]), count([decoder, embedding, head])


def _cached_bytes(case: AdapterCase) -> int | None:
    """Key-value bytes per token as they stand in the cache after a prompt; None where no cache can be found."""
    import torch

    with torch.inference_mode():
        _, state = case.loaded.adapter.prefill(case.loaded, case.inputs[0])
    if isinstance(state, dict) or hasattr(state, "__dict__"):
        state = [state, *(state if isinstance(state, dict) else vars(state)).values()]
    for part in state if isinstance(state, (tuple, list)) else ():
        pairs = [(getattr(e, "keys", None), getattr(e, "values", None)) for e in getattr(part, "layers", None) or ()]
        if len(pairs) == case.loaded.info.n_layers and all(isinstance(t, torch.Tensor) for pair in pairs for t in pair):
            return sum(t[0, :, 0].numel() * t.element_size() for pair in pairs for t in pair)
    return None


@ON_LOADING
def load_again(case: AdapterCase) -> None:
    """Loaded a second time it is the same model, by revision and by logits."""
    case.need_loading()
    again = case.cls().load(case.options)
    if again.info.revision != case.loaded.info.revision:
        raise Failed("info.revision differs between two loadings: make it a hash of the weights")
    import torch

    for inputs in case.inputs:
        with torch.inference_mode():
            found = again.adapter.forward(again, inputs, logits_to_keep=1)
        case.same("loaded a second time", found, case.logits(inputs, keep=1), tight=True)
