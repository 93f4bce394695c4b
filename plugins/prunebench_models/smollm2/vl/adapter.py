"""The adapter of SmolLM2-VL, and the questions it is calibrated on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.checkpoint import dense_info, input_device, load_pretrained
from prunebench.errors import CalibrationError, ModelError, first_line
from prunebench_models.smollm2.vl.folder import adapter_revision, merged_folder
from prunebench_models.smollm2.vl.prompt import TOKENS_PER_IMAGE, begin_id, instruction_ids
from prunebench_models.testbed.adapter import as_arrays
from prunebench_models.testbed.data import TestbedDataset
from prunebench_models.transformers_adapter import TransformersAdapter

__all__ = ["ImageQuestions", "SmolLM2VLAdapter"]


class ImageQuestions(TestbedDataset):
    """The testbed's questions about one image: general and math."""

    name = "testbed-image"
    domains = ("general", "math")


class SmolLM2VLAdapter(TransformersAdapter):
    """SmolLM2-135M with eyes: the testbed's tower in front of a real pretrained decoder, trained on drawn scenes."""

    name = "smollm2-vl"
    modalities = ("text", "image", "video")
    default_suite = "testbed-image"
    default_calibration = "testbed-image"

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        """Load it; ``options.path`` is a folder with adapter weights, not with a whole model."""
        from transformers import PreTrainedTokenizerFast

        from prunebench_models.smollm2.vl import weights_dir
        from prunebench_models.smollm2.vl.modeling import SmolLM2VL, SmolLM2VLConfig

        adapter = Path(options.path) if options.path else weights_dir()
        folder = merged_folder(adapter, _say)
        try:
            config = SmolLM2VLConfig.from_pretrained(folder)
            # AutoTokenizer would look for a registered class of this configuration, and warn.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        except Exception as error:  # tokenizers raise types of their own
            raise ModelError(f"cannot load SmolLM2-VL from {folder}: {first_line(error)}") from error
        revision = adapter_revision(adapter)
        info = dense_info(SmolLM2VL, config, self, name=self.name, revision=revision, dtype=options.dtype)
        if options.plan is not None:
            options.plan.check_target(info)
        model = load_pretrained(SmolLM2VL, folder, config, options)
        return LoadedModel(model, self, info, input_device(model), tokenizer, folder, options.plan)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        import torch

        tokenizer, words = loaded.processor, loaded.model.get_input_embeddings()
        rows, visual = [], []
        for sample in samples:
            ids = torch.tensor([begin_id(tokenizer), *instruction_ids(tokenizer, sample.instruction)])
            text = words(ids.to(loaded.device))
            media = _media_tokens(loaded, sample)
            rows.append(torch.cat([text[:1], media.to(text.dtype), text[1:]]))
            visual.append(len(media))
        width = max(len(row) for row in rows)
        embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, width - len(row), 0)) for row in rows])
        places = torch.arange(width, device=embeds.device)[None]
        first = torch.tensor([width - len(row) for row in rows], device=embeds.device)[:, None]
        seen = (places > first) & (places <= first + torch.tensor(visual, device=embeds.device)[:, None])
        mask = places >= first
        groups = {"visual": seen, "text": mask & ~seen}
        return DecoderInputs(embeds, mask.long(), groups, sample_ids=tuple(sample.id for sample in samples))


def _media_tokens(loaded: LoadedModel, sample: Sample) -> Any:
    """(tokens, hidden): images one after the other, then the frames of the video."""
    import torch

    if sample.audio is not None:
        raise CalibrationError(f"sample {sample.id!r} has sound, and SmolLM2-VL has no audio tower")
    sample = as_arrays(sample)
    clip = sample.video if sample.video is not None else ()
    if len(clip) > loaded.model.config.max_frames:
        raise CalibrationError(f"sample {sample.id!r} has {len(clip)} frames, {loaded.model.config.max_frames} fit")
    images = [*sample.images, *clip]
    if not images:
        return torch.zeros(0, loaded.info.hidden_size, device=loaded.device)
    pixels = _pixels([np.asarray(image) for image in images]).to(loaded.device)
    tokens = loaded.model.embed_media(pixels)
    if len(clip):
        frames = loaded.model.embed_frames(torch.arange(len(clip), device=loaded.device))
        tokens = torch.cat([tokens[: len(sample.images)], tokens[len(sample.images) :] + frames])
    return tokens.reshape(len(images) * TOKENS_PER_IMAGE, -1)


def _pixels(images: list[np.ndarray]) -> Any:
    from prunebench_models.testbed.processing import TestbedProcessor

    return TestbedProcessor()(text=["<image>"] * len(images), images=images)["pixel_values"]


def _say(line: str) -> None:
    print(f"smollm2-vl: {line}", file=sys.stderr, flush=True)
