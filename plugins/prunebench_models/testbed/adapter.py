"""The adapter of the shipped model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError, ModelError, first_line
from prunebench.measure.cost import checkpoint_revision, describe
from prunebench_models.transformers_adapter import (
    TransformersAdapter,
    quiet_loading,
    resolve_device,
    resolve_dtype,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Testbed"]


class Testbed(TransformersAdapter):
    """The small model that ships: images, video and audio; a constructed diagnostic with planted redundancy."""

    __test__ = False
    name = "testbed"
    modalities = ("text", "image", "video", "audio")
    default_suite = "testbed"
    default_calibration = "testbed"

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        from prunebench_models.testbed import weights_dir
        from prunebench_models.testbed.modeling import TestbedForConditionalGeneration
        from prunebench_models.testbed.processing import TestbedProcessor

        folder = Path(options.path) if options.path else weights_dir()
        if not (folder / "config.json").is_file():
            raise ModelError(f"no testbed model in {folder}: there is no config.json; `make testbed` trains one")
        # Looked at first: transformers would build another model's default shape, of many GB, before it complains.
        if (kind := _model_type(folder / "config.json")) != TestbedForConditionalGeneration.config_class.model_type:
            raise ModelError(
                f"{folder} holds a model of type {kind!r}, not the testbed: give its folder by --model-path"
            )
        torch_device, torch_dtype = resolve_device(options.device), resolve_dtype(options.dtype)
        revision = checkpoint_revision(folder)
        quiet_loading()
        try:
            model, report = TestbedForConditionalGeneration.from_pretrained(
                folder, dtype=torch_dtype, local_files_only=True, output_loading_info=True
            )
            processor = TestbedProcessor.from_pretrained(folder)
        except Exception as error:  # safetensors and tokenizers raise types of their own
            raise ModelError(f"cannot load the testbed from {folder}: {first_line(error)}") from error
        if wrong := [
            name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report.get(key, ())
        ]:
            raise ModelError(f"the weights in {folder} do not fit the model: {wrong[0]} (and {len(wrong) - 1} more)")
        model = model.to(torch_device).eval()
        roles = getattr(model.config, "planted_roles", None)
        info = describe(
            model,
            self,
            name=self.name,
            revision=revision,
            dtype=options.dtype,
            planted_roles={role: tuple(layers) for role, layers in roles.items()} if roles else None,
        )
        return LoadedModel(model, self, info, torch_device, processor, folder)

    def decode_text(self, loaded: LoadedModel, tokens: Tensor) -> Sequence[str]:
        return loaded.processor.batch_decode(tokens)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        try:
            batch = loaded.processor.from_samples(samples).to(loaded.device)
            embeds = loaded.model.embed(
                batch["input_ids"], pixel_values=batch.get("pixel_values"), audio_features=batch.get("audio_features")
            )
        except ValueError as error:
            raise CalibrationError(f"sample {samples[0].id!r} does not fit the testbed: {first_line(error)}") from error
        groups = _token_groups(batch["input_ids"], batch["attention_mask"], loaded.model.config)
        return DecoderInputs(embeds, batch["attention_mask"], groups, sample_ids=tuple(sample.id for sample in samples))


def _token_groups(ids: Tensor, mask: Tensor, config: object) -> dict[str, Tensor]:
    visual = (ids == config.image_token_id) | (ids == config.video_token_id)  # type: ignore[attr-defined]
    audio = ids == config.audio_token_id  # type: ignore[attr-defined]
    return {"visual": visual, "audio": audio, "text": mask.bool() & ~visual & ~audio}


def _model_type(path: Path) -> object:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {first_line(error)}") from error
    return config.get("model_type") if isinstance(config, dict) else None
