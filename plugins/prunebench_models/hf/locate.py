"""From what was typed to a folder with weights, and from its config.json to a family and a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.adapter import LoadOptions
from prunebench.checkpoint import read_json
from prunebench.errors import BadParameter, ModelError, first_line
from prunebench.measure.cost import checkpoint_revision
from prunebench_models.hf.families import ALIASES, Family, family_of, is_known
from prunebench_models.hub import Place, fetch

__all__ = ["locate", "model_class_of", "recognise"]

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt")
"""Files of a repository that are fetched; pickled weights never are."""


def locate(options: LoadOptions) -> Place:
    """The folder that was meant; a Hub name is fetched.

    Raises:
        BadParameter: nothing, or two things, named.
        ModelError: no such folder, or a Hub name that cannot be fetched.
    """
    reference = options.reference
    if options.path and reference:
        raise BadParameter(f"both {options.name}:{reference} and --model-path {options.path} name weights: give one")
    if options.path or (reference and Path(reference).expanduser().is_dir()):
        folder = Path(options.path or reference or "").expanduser()
        if not folder.is_dir():
            raise ModelError(f"no such model folder: {folder}")
        return Place(folder, folder.resolve().name, checkpoint_revision(folder))
    alias = ALIASES.get(options.name)
    repository = reference or (alias.checkpoint if alias else None)
    if not repository:
        raise BadParameter(
            f"model {options.name or 'hf'!r} needs weights: {options.name or 'hf'}:ORG/NAME, "
            f"{options.name or 'hf'}:/path/to/folder, or --model-path DIR"
        )
    if repository.startswith(("/", ".", "~")) or repository.count("/") != 1:
        raise ModelError(f"no such model folder: {repository} (a name on the Hub has the form ORG/NAME)")
    patterns = [*PATTERNS, "*.py"] if options.trust_remote_code else PATTERNS
    folder = fetch(repository, options.revision, patterns)
    return Place(folder, repository, folder.name)


def recognise(place: Place, options: LoadOptions) -> tuple[Family, dict[str, Any]]:
    """The row of a folder by its config.json, before any weight is read.

    Raises:
        ModelError: no config.json, an unknown or refused family, remote code that is not allowed, or not the family
            that was asked for.
    """
    content = read_json(place.folder / "config.json")
    model_type = content.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{place.folder / 'config.json'} names no model_type: it is not a transformers checkpoint")
    causal = _causal_types()
    if "auto_map" in content and not is_known(model_type, causal):
        if not options.trust_remote_code:
            raise ModelError(
                f"{place.name} brings code of its own for models of type {model_type!r}: look at it, and allow it to "
                "run with --trust-remote-code"
            )
        family = ALIASES["causal-lm"]
    else:
        family = family_of(model_type, causal)
    asked = ALIASES.get(options.name)
    if asked is not None and asked is not family:
        raise ModelError(
            f"{place.name} holds a model of type {model_type!r}, which is {family.alias!r}, not {asked.alias!r}: "
            f"say --model {family.alias}:..., or hf:... for any family"
        )
    return family, content


def _causal_types() -> Mapping[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    return names


def model_class_of(family: Family, content: Mapping[str, Any], place: Place, options: LoadOptions) -> Any:
    """The model's class, by name: automatic look-ups import more than a machine may have.

    Raises:
        ModelError: this transformers does not have it, or the checkpoint's own code cannot be loaded.
    """
    import transformers

    model_type = content["model_type"]
    name = family.class_name or _causal_types().get(model_type)
    if name is None:
        return _remote_class(content, place)
    try:
        return getattr(transformers, name)
    except (AttributeError, ImportError, ModuleNotFoundError) as error:
        raise ModelError(
            f"transformers {transformers.__version__} cannot provide {name} ({first_line(error)}): "
            "install a newer transformers 5"
        ) from error


def _remote_class(content: Mapping[str, Any], place: Place) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = content["auto_map"].get("AutoModelForCausalLM")
    if reference is None:
        raise ModelError(f"the code of {place.name} defines no AutoModelForCausalLM: it needs an adapter plugin")
    try:
        return get_class_from_dynamic_module(reference, str(place.folder))
    except Exception as error:  # foreign code
        raise ModelError(f"the code of {place.name} cannot be loaded: {first_line(error)}") from error
