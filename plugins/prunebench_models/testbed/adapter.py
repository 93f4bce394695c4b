"""The adapter of the shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.checkpoint import dense_info, input_device, load_pretrained, read_json
from prunebench.errors import CalibrationError, ModelError, first_line
from prunebench.measure.cost import checkpoint_revision
from prunebench.media import AudioFile, ImageFile, VideoFile
from prunebench_models.transformers_adapter import TransformersAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench_models.testbed.configuration import TestbedConfig

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
        from prunebench_models.testbed.configuration import TestbedConfig
        from prunebench_models.testbed.modeling import TestbedForConditionalGeneration
        from prunebench_models.testbed.processing import TestbedProcessor

        folder = Path(options.path) if options.path else weights_dir()
        if not (folder / "config.json").is_file():
            raise ModelError(f"no testbed model in {folder}: there is no config.json; `make testbed` trains one")
        # Looked at first: transformers would build another model's default shape, of many GB, before it complains.
        if (kind := read_json(folder / "config.json").get("model_type")) != TestbedConfig.model_type:
            raise ModelError(
                f"{folder} holds a model of type {kind!r}, not the testbed: give its folder by --model-path"
            )
        revision = checkpoint_revision(folder)
        try:
            config = TestbedConfig.from_pretrained(folder)
            processor = TestbedProcessor.from_pretrained(folder)
        except Exception as error:  # tokenizers raise types of their own
            raise ModelError(f"cannot load the testbed from {folder}: {first_line(error)}") from error
        info = dense_info(
            TestbedForConditionalGeneration,
            config,
            self,
            name=self.name,
            revision=revision,
            dtype=options.dtype,
            planted_roles=_planted_roles(config),
        )
        if options.plan is not None:
            options.plan.check_target(info)
        model = load_pretrained(TestbedForConditionalGeneration, folder, config, options)
        return LoadedModel(model, self, info, input_device(model), processor, folder, options.plan)

    def decode_text(self, loaded: LoadedModel, tokens: Tensor) -> Sequence[str]:
        return loaded.processor.batch_decode(tokens)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        try:
            batch = loaded.processor.from_samples([as_arrays(sample) for sample in samples]).to(loaded.device)
            embeds = loaded.model.embed(
                batch["input_ids"], pixel_values=batch.get("pixel_values"), audio_features=batch.get("audio_features")
            )
        except ValueError as error:
            raise CalibrationError(f"sample {samples[0].id!r} does not fit the testbed: {first_line(error)}") from error
        groups = _token_groups(batch["input_ids"], batch["attention_mask"], loaded.model.config)
        return DecoderInputs(embeds, batch["attention_mask"], groups, sample_ids=tuple(sample.id for sample in samples))


def as_arrays(sample: Sample) -> Sample:
    """The sample with its media as the processor takes them: four frames, one second of sound at the model's rate.

    What a sample of the testbed's own dataset holds comes out unchanged.

    Raises:
        MediaError: a file that cannot be read.
    """
    from prunebench.media import evenly, frames_of, images_of, waveform_of
    from prunebench_models.testbed.data.audio import SAMPLES, SAMPLING_RATE
    from prunebench_models.testbed.data.video import FRAMES

    changes: dict[str, Any] = {}
    if any(isinstance(image, ImageFile) for image in sample.images):
        changes["images"] = tuple(np.asarray(image) for image in images_of(sample))
    if isinstance(sample.video, VideoFile) or (sample.video is not None and len(sample.video) > FRAMES):
        changes["video"] = frames_of(sample, evenly(FRAMES))
    if isinstance(sample.audio, AudioFile) or sample.sampling_rate not in (None, SAMPLING_RATE):
        changes["audio"] = waveform_of(sample, SAMPLING_RATE, mono="mean", seconds=SAMPLES / SAMPLING_RATE)
        changes["sampling_rate"] = SAMPLING_RATE
    return replace(sample, **changes) if changes else sample


def _token_groups(ids: Tensor, mask: Tensor, config: object) -> dict[str, Tensor]:
    visual = (ids == config.image_token_id) | (ids == config.video_token_id)  # type: ignore[attr-defined]
    audio = ids == config.audio_token_id  # type: ignore[attr-defined]
    return {"visual": visual, "audio": audio, "text": mask.bool() & ~visual & ~audio}


def _planted_roles(config: TestbedConfig) -> dict[str, tuple[int, ...]] | None:
    """Layers by role, counted as they stand in this checkpoint: one that was pruned before has lost some."""
    if not config.planted_roles:
        return None
    kept = (getattr(config, "prunebench", None) or {}).get("kept_layers")
    if kept is None:
        return {role: tuple(layers) for role, layers in config.planted_roles.items()}
    return {
        role: tuple(kept.index(layer) for layer in layers if layer in kept)
        for role, layers in config.planted_roles.items()
    }
