"""Build a model from a folder, reading of its decoder only the layers that stay."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.adapter import LoadOptions, ModelAdapter
from prunebench.adapter import find_decoder as usual_decoder
from prunebench.checkpoint.files import Checkpoint
from prunebench.checkpoint.layers import decoder_keys, renumbered
from prunebench.checkpoint.narrowing import narrowed_class, record_pruned, saved_widths
from prunebench.checkpoint.reading import lazy_tensors
from prunebench.devices import resolve_device, resolve_dtype
from prunebench.errors import BadParameter, ModelError, PlanError, PruneBenchError, first_line
from prunebench.layer_config import config_changes
from prunebench.measure.cost import describe
from prunebench.model_info import ModelInfo
from prunebench.plan import Plan
from prunebench.quiet import quiet_transformers
from prunebench.surgery import apply_plan

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["dense_info", "input_device", "load_pretrained", "meta_model"]


def load_pretrained(
    model_class: Any,
    folder: str | Path,
    config: Any,
    options: LoadOptions,
    *,
    kept: Sequence[int] | None = None,
    ignore_unexpected: Sequence[str] = (),
    find_decoder: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """A transformers model from the safetensors in `folder`, ready for inference.

    With `kept`, tensors of other decoder layers are never read: peak memory and bytes read grow with the kept layers
    only, on the CPU, on a GPU and over several devices alike. The result equals the dense model pruned afterwards,
    bit for bit, and its configuration says so; `config` itself is not changed. What a plan does to the layers that stay
    is done too.

    Args:
        model_class: a ``PreTrainedModel``.
        folder: with ``model.safetensors``, or an index and shards. Keys may have any names that the class can load.
        config: of the dense model.
        options: ``dtype``, ``device``, ``device_map``, ``offload_folder``, ``attn_implementation`` and ``plan`` count.
        kept: original ids of the layers to read, ascending; None takes those that ``options.plan`` needs, or all.
        ignore_unexpected: regular expressions of keys that the model may leave unused.
        find_decoder: module with ``layers`` of a model; the default is that of `ModelAdapter.decoder`.

    Raises:
        ModelError: files that are missing or damaged, keys that are missing, unexpected or of another shape, or a
            layer count that is not that of the configuration.
        PlanError: the plan is for another depth, or an operation does not fit the model.
        BadParameter: no such device or dtype.
    """
    folder = Path(folder)
    dtype = resolve_dtype(options.dtype)
    placement = _placement(options)
    checkpoint = Checkpoint.open(folder)
    with quiet_transformers():
        shell = meta_model(model_class, config, options.dtype, find_decoder)
        decoder: Any = (find_decoder or usual_decoder)(shell)
        n_layers = len(decoder.layers)
        layer_keys = decoder_keys(checkpoint, shell, decoder)
        _check_depth(checkpoint, layer_keys, n_layers, _ignored(shell, ignore_unexpected))
        kept = _kept(kept, options, n_layers)
        arguments = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True, **placement}
        if options.attn_implementation:
            arguments["attn_implementation"] = options.attn_implementation
        try:
            if kept is None:
                model, report = _built(model_class, config, kept, find_decoder).from_pretrained(
                    folder, config=copy.deepcopy(config), local_files_only=True, use_safetensors=True, **arguments
                )
            else:
                if not layer_keys:
                    raise ModelError(
                        f"cannot tell which tensors in {folder} are decoder layers: "
                        "load it without a plan, and prune then"
                    )
                for name, value in config_changes(decoder.config, kept, n_layers).items():
                    setattr(decoder.config, name, value)
                names = renumbered(checkpoint, layer_keys, kept)
                build = _built(model_class, config, kept, find_decoder)
                model, report = _from_tensors(build, checkpoint, names, shell.config, arguments)
        except (PruneBenchError, MemoryError):
            raise
        except Exception as error:  # safetensors, accelerate and transformers raise types of their own
            if "out of memory" in str(error).lower():
                raise
            raise ModelError(f"cannot load {folder}: {first_line(error)}") from error
    _check_report(folder, report, ignore_unexpected)
    if saved_widths(config):
        model.__class__ = model_class  # no longer one that narrows what it builds
    model.eval()
    if options.plan is not None and not options.plan.is_empty:
        _finish(model, find_decoder or usual_decoder, options.plan, kept or range(n_layers))
    return model


def _built(
    model_class: Any, config: Any, kept: Sequence[int] | None, find_decoder: Callable[[nn.Module], nn.Module] | None
) -> Any:
    """The class, or one that makes layers narrower than the rest of the configuration says."""
    widths = saved_widths(config, kept)
    return narrowed_class(model_class, widths, find_decoder) if widths else model_class


def dense_info(
    model_class: Any, config: Any, adapter: ModelAdapter, *, name: str, revision: str, dtype: str, **extra: Any
) -> ModelInfo:
    """Describe the dense model without reading a weight: for loads with a plan, and for layers on several devices.

    Args:
        model_class: a ``PreTrainedModel``.
        config: of the dense model; not changed.
        adapter: whose ``decoder``, ``text_config`` and ``protected_layers`` say what is what.
        name, revision, dtype, extra: as in `prunebench.measure.cost.describe`.

    Raises:
        ModelError: no model can be built from `config`.
    """
    with quiet_transformers():
        model = meta_model(model_class, config, dtype, adapter.decoder)
    return describe(model, adapter, name=name, revision=revision, dtype=dtype, **extra)


def input_device(model: nn.Module) -> torch.device:
    """Where a loaded model wants its inputs: the device that its word embedding runs on, offloaded or not."""
    import torch

    embedding = model.get_input_embeddings()
    place = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if place is not None:
        return torch.device(place)
    return next(embedding.parameters()).device


def meta_model(
    model_class: Any, config: Any, dtype: str, find_decoder: Callable[[nn.Module], nn.Module] | None = None
) -> nn.Module:
    """A model with shapes and number formats, but without values, as `load_pretrained` would make it.

    Raises:
        ModelError: the configuration does not describe a model of this class.
    """
    import torch
    from transformers import initialization

    wanted = resolve_dtype(dtype)
    safe = getattr(initialization, "meta_device_safe_creation_ops", nullcontext)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(wanted)
        with torch.device("meta"), safe():
            model = _built(model_class, config, None, find_decoder)(copy.deepcopy(config))
            if saved_widths(config):
                model.__class__ = model_class
    except PruneBenchError:
        raise
    except Exception as error:
        raise ModelError(
            f"config.json does not describe a {model_class.__name__} that can be built: {first_line(error)}"
        ) from error
    finally:
        torch.set_default_dtype(before)
    exact = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()) if wanted != torch.float32 else set()
    if wanted == torch.float16:
        exact |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if exact:
        pattern = re.compile("|".join(re.escape(name) for name in sorted(exact)))
        for parameter_name, parameter in model.named_parameters():
            if pattern.search(parameter_name):
                parameter.data = parameter.data.float()
    return model


def _finish(
    model: nn.Module, find_decoder: Callable[[nn.Module], nn.Module], plan: Plan, present: Sequence[int]
) -> None:
    """What is left to do once the needed layers are there."""
    decoder: Any = find_decoder(model)
    if not plan.only_drops or tuple(present) != plan.kept_layers:
        apply_plan(decoder, decoder.config, plan, present, for_good=True)
    record_pruned(model, decoder.config, plan, find_decoder)


def _kept(kept: Sequence[int] | None, options: LoadOptions, n_layers: int) -> tuple[int, ...] | None:
    """Layers to read, or None for all of them."""
    if options.plan is not None and options.plan.target.n_layers != n_layers:
        raise PlanError(
            f"the plan is for {options.plan.target.n_layers} decoder layers, the model has {n_layers}: "
            "give the checkpoint that it was made for"
        )
    if kept is None:
        if options.plan is None:
            return None
        kept = options.plan.needed_layers
    kept = tuple(kept)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= n_layers:
        raise PlanError(f"layers to keep must be ascending ids in 0..{n_layers - 1}, at least one, got {list(kept)}")
    if options.plan is not None and (lacking := sorted(set(options.plan.needed_layers) - set(kept))):
        raise PlanError(f"the plan needs layer {lacking[0]}, which is not among the layers to keep: {list(kept)}")
    return None if len(kept) == n_layers else kept


def _placement(options: LoadOptions) -> dict[str, Any]:
    if options.device_map is not None:
        return {"device_map": options.device_map, "offload_folder": options.offload_folder}
    if options.offload_folder is not None:
        raise BadParameter("--offload-folder is for layers that --device-map places on no device: give both")
    device = resolve_device(options.device)
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def _ignored(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    return [*patterns, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]


def _check_depth(
    checkpoint: Checkpoint, layer_keys: dict[str, tuple[int, str]], n_layers: int, ignored: Sequence[str]
) -> None:
    """Refuse a configuration that counts other layers than the files hold."""
    found = {layer for key, (layer, _) in layer_keys.items() if not any(re.search(pattern, key) for pattern in ignored)}
    if not found or found == set(range(n_layers)):
        return
    if gaps := sorted(set(range(max(found) + 1)) - found):
        raise ModelError(f"{checkpoint.folder} has no weights of decoder layer {gaps[0]}: fetch the folder anew")
    raise ModelError(
        f"config.json in {checkpoint.folder} says {n_layers} decoder layers, the weights hold {len(found)}: "
        "one of the two belongs to another checkpoint"
    )


def _from_tensors(
    model_class: Any, checkpoint: Checkpoint, names: dict[str, str], config: Any, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """``from_pretrained`` on chosen tensors; each is read when its parameter is filled."""
    from transformers import GenerationConfig

    scratch = None
    if arguments.get("device_map") is not None and arguments.get("offload_folder") is None:
        # Layers that go to the disk are written there anew, under their new numbers.
        scratch = tempfile.mkdtemp(prefix="prunebench-offload-")
        arguments = {**arguments, "offload_folder": scratch}
    try:
        with lazy_tensors(checkpoint, names) as state:
            model, report = model_class.from_pretrained(None, config=config, state_dict=state, **arguments)
    except BaseException:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    if scratch:
        weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    model.config.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model, report


def _check_report(folder: Path, report: dict[str, Any], ignore_unexpected: Sequence[str]) -> None:
    """Refuse what transformers only warns of: it fills gaps with random weights."""
    unexpected = [
        key
        for key in sorted(report.get("unexpected_keys") or ())
        if not any(re.search(pattern, key) for pattern in ignore_unexpected)
    ]
    if mismatched := sorted(report.get("mismatched_keys") or ()):
        key, found, wanted = mismatched[0][:3]
        raise ModelError(
            f"{folder}: {key} has shape {tuple(found)} in the weights and {tuple(wanted)} by config.json"
            f"{_more(mismatched)}: one of the two belongs to another checkpoint"
        )
    if missing := sorted(report.get("missing_keys") or ()):
        raise ModelError(
            f"{folder} has no weights for {missing[0]}{_more(missing)}"
            + (f", but holds {unexpected[0]}, which fits nothing" if unexpected else "")
            + ": it is not a whole checkpoint of this model"
        )
    if unexpected:
        raise ModelError(
            f"{folder} holds {unexpected[0]}{_more(unexpected)}, which this model has no place for: "
            "it is a checkpoint of another model"
        )
    if errors := report.get("error_msgs"):
        first = errors[0] if isinstance(errors, (list, tuple)) else errors
        raise ModelError(f"cannot load {folder}: {first_line(ModelError(str(first)))}")


def _more(found: Sequence[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
