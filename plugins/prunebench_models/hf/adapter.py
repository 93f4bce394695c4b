"""The generic adapter: any family of the table, from a folder or the Hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.checkpoint import dense_info, input_device, load_pretrained
from prunebench.errors import CalibrationError, ModelError, PruneBenchError, first_line
from prunebench.quiet import quiet_transformers
from prunebench_models.hf import capture, deepstack
from prunebench_models.hf.appending import append_tokens
from prunebench_models.hf.families import FAMILIES, Family
from prunebench_models.hf.locate import locate, model_class_of, recognise
from prunebench_models.hf.processors import load_processor
from prunebench_models.hf.prompts import model_inputs
from prunebench_models.hub import Place
from prunebench_models.transformers_adapter import TransformersAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FAMILY_ADAPTERS", "TransformersModel", "named_after"]

OUTER = ("input_ids", "inputs_embeds", "position_ids", "past_key_values", "use_cache")


class TransformersModel(TransformersAdapter):
    """Any transformers family by one procedure: ``hf:ORG/NAME``, ``hf:/folder``, or a family's name.

    The family is found from config.json before a weight is read; `prunebench_models.hf.families` holds one row for
    each. No layer is protected: where a decoder adds visual features after its first layers, they are kept in place
    exactly (`prunebench_models.hf.deepstack`).
    """

    name = "hf"
    takes_reference = True
    family: Family

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        place = locate(options)
        family, content = recognise(place, options)
        self.use(family)
        model_class = model_class_of(family, content, place, options)
        config = _config(model_class, family, place)
        info = dense_info(model_class, config, self, name=place.name, revision=place.revision, dtype=options.dtype)
        if options.plan is not None:
            options.plan.check_target(info)
        processor = load_processor(place.folder, family, trust_remote_code=options.trust_remote_code)
        model = load_pretrained(model_class, place.folder, config, options, ignore_unexpected=family.ignored)
        before = (getattr(config, "prunebench", None) or {}).get("kept_layers")
        if before is not None:  # the checkpoint was pruned when it was saved
            self.layers_removed(model, before)
        if options.plan is not None and not options.plan.is_empty:
            self.layers_removed(model, options.plan.kept_layers)
        return LoadedModel(model, self, info, input_device(model), processor, place.folder, options.plan)

    def use(self, family: Family) -> None:
        """Become the adapter of one family."""
        self.family = family
        self.modalities = family.modalities  # type: ignore[misc]
        self.step_extra = family.step_extra  # type: ignore[misc]
        self.batching = family.batching  # type: ignore[misc]
        self.default_suite, self.default_calibration = _defaults(family.modalities)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        """Each sample alone through processor and towers, then put into one left-padded batch.

        Raises:
            CalibrationError: media that the model does not take, or that its processor refuses.
        """
        return capture.collate([self._encoded(loaded, sample) for sample in samples])

    def _encoded(self, loaded: LoadedModel, sample: Sample) -> DecoderInputs:
        try:
            batch = model_inputs(loaded.processor, self.family, sample)
            moved = {name: _placed(value, loaded.model, loaded.device) for name, value in batch.items()}
            return self.encode_batch(loaded, moved, sample.id)
        except PruneBenchError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            if "out of memory" in str(error).lower():
                raise
            raise CalibrationError(
                f"sample {sample.id!r} does not fit {loaded.info.name}: {first_line(error)}"
            ) from error

    def encode_batch(self, loaded: LoadedModel, batch: Mapping[str, Any], sample_id: str = "") -> DecoderInputs:
        """The decoder's inputs for the model's own inputs of one sample, without padding."""
        import torch

        if self.family.is_plain:
            ids = batch["input_ids"]
            mask = torch.ones_like(ids)
            return DecoderInputs(
                loaded.model.get_input_embeddings()(ids), mask, {"text": mask.bool()}, sample_ids=(sample_id,)
            )
        return capture.decoder_inputs(loaded.model, loaded.decoder, batch, sample_id)

    def run(self, loaded: LoadedModel, arguments: dict[str, Any], logits_to_keep: int) -> tuple[Tensor, Any]:
        if self.family.is_plain:
            return super().run(loaded, arguments, logits_to_keep)
        return _through(loaded, arguments, logits_to_keep)

    def append_tokens(self, loaded: LoadedModel, inputs: DecoderInputs, ids: Tensor, mask: Tensor) -> DecoderInputs:
        return append_tokens(loaded, inputs, ids, mask, self.step_extra)

    def layers_removed(self, model: nn.Module, kept: Sequence[int]) -> Callable[[], None] | None:
        decoder = self.decoder(model)
        return deepstack.keep_in_place(decoder, kept) if deepstack.has_deepstack(decoder) else None


def named_after(family: Family) -> type[TransformersModel]:
    """The same adapter under the name of one row, with what the row says as its description."""
    what = f"{family.checkpoint or 'ORG/NAME after a colon, or --model-path'}; {', '.join(family.modalities)}"
    members = {
        "name": family.alias,
        "modalities": family.modalities,
        "batching": family.batching,
        "__doc__": f"{what}. {family.notes[:1].upper()}{family.notes[1:]}" if family.notes else f"{what}.",
        "__module__": __name__,
    }
    return type(family.class_name or "CausalLanguageModel", (TransformersModel,), members)


FAMILY_ADAPTERS: tuple[type[TransformersModel], ...] = tuple(named_after(family) for family in FAMILIES)


def _through(loaded: LoadedModel, arguments: dict[str, Any], logits_to_keep: int) -> tuple[Tensor, Any]:
    """The model's own forward pass with the decoder's arguments put in front of the decoder.

    What comes after the decoder (head, scaling, capping) is the model's own code; what comes before it has nothing
    left to do, and where it prepares arguments all the same, ours replace them.
    """
    mine = {name: value for name, value in arguments.items() if name not in {"input_ids", "inputs_embeds", "use_cache"}}

    attention = getattr(loaded.decoder.config, "_attn_implementation", None)
    mine["attention_mask"] = capture.mask_for(arguments["attention_mask"], attention, loaded.model.dtype)

    def put(_module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, **mine}

    outer = {name: arguments[name] for name in OUTER if name in arguments}
    outer["attention_mask"] = None if capture.is_square(arguments["attention_mask"]) else arguments["attention_mask"]
    if "logits_to_keep" in _parameters(type(loaded.model)):
        outer["logits_to_keep"] = logits_to_keep
    # In front of any other hook: the re-mapping of a pruned decoder comes after.
    handle = loaded.decoder.register_forward_pre_hook(put, with_kwargs=True, prepend=True)
    try:
        output = loaded.model(**outer)
    finally:
        handle.remove()
    return output.logits[:, -logits_to_keep:], output.past_key_values


@cache
def _parameters(model_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]


def _config(model_class: Any, family: Family, place: Place) -> Any:
    try:
        with quiet_transformers():
            return model_class.config_class.from_pretrained(place.folder)
    except Exception as error:  # validation errors have types of their own
        raise ModelError(
            f"{place.folder / 'config.json'} does not describe a {family.alias}: {first_line(error)}"
        ) from error


def _defaults(modalities: Sequence[str]) -> tuple[str | None, str | None]:
    """Suite and calibration data that ask only what a model takes."""
    if modalities == ("text",):
        return "text-ppl", "text"
    if "image" not in modalities:
        return "procedural-audio", "procedural:audio"
    kind = "all" if "audio" in modalities else "image-video" if "video" in modalities else "image"
    return f"procedural-{kind}", f"procedural:{kind}"


def _placed(value: Any, model: Any, device: Any) -> Any:
    """On the model's device; numbers in its own format."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
