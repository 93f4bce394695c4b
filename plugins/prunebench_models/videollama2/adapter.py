"""The adapter of VideoLLaMA2 and 2.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.checkpoint import dense_info, input_device, load_pretrained, read_json
from prunebench.errors import ModelError, first_line
from prunebench_models.transformers_adapter import TransformersAdapter

from .repository import check_variant, locate

if TYPE_CHECKING:
    from torch import Tensor

    from .processing import Prepared

__all__ = ["VideoLlama2"]

UNUSED = (r"\.embeddings\.position_ids$", r"\.rotary_emb\.inv_freq$")
"""Buffers that older transformers wrote and nothing reads."""

MODALITIES = ("text", "image", "video", "audio")


class VideoLlama2(TransformersAdapter):
    """VideoLLaMA2 and 2.1: ``videollama2:7b``, ``:7b-16f``, ``:2.1-7b-16f``, ``:2.1-7b-av``, or a hub name.

    Without a variant it is ``2.1-7b-av``: the only one that takes every kind of input, and the only one that can have
    made published results on sound.

    Inputs: one image, one video, a sound, or a video with a sound per question. What the original code leaves open is
    settled so:

    - An image is a video of equal frames (what the connectors were trained with). The original audio-visual code has
      no way to pass an image; here the AV variant takes one, also together with a sound.
    - In the AV variant a video *file* comes with its sound track, or with silence where it has none; a video as an
      array comes alone unless the sample has a sound of its own.
    - A sound longer than 30 seconds is heard from its beginning (the original takes a random window).
    - Generation is greedy; the samplers and penalties of a ``generation_config.json`` are not used.
    """

    name = "videollama2"
    modalities = MODALITIES
    takes_reference = True

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        from .configuration import config_class
        from .modeling import MODELS
        from .processing import Processor

        place = locate(options)
        model_type = read_json(place.folder / "config.json").get("model_type")
        kind = config_class(model_type)
        try:
            config: Any = kind.from_pretrained(place.folder)  # type: ignore[attr-defined]
        except ModelError:
            raise
        except Exception as error:  # transformers validates configurations with errors of its own
            raise ModelError(f"{place.folder / 'config.json'} does not fit VideoLLaMA2: {first_line(error)}") from error
        check_variant(options, place, config)
        self.use(audio=config.has_audio)
        model_class = MODELS[config.model_type]
        info = dense_info(model_class, config, self, name=place.name, revision=place.revision, dtype=options.dtype)
        if options.plan is not None:
            options.plan.check_target(info)
        processor = Processor.from_pretrained(place.folder, config)
        model: Any = load_pretrained(model_class, place.folder, config, options, ignore_unexpected=UNUSED)
        generation = model.generation_config
        generation.pad_token_id = processor.tokenizer.pad_token_id
        if generation.eos_token_id is None:
            generation.eos_token_id = processor.tokenizer.eos_token_id
        # Counted here: towers lie below the module with the layers too, and are no part of the language model.
        around = (model.model.embed_tokens, model.model.norm, model.lm_head)
        lm_params = sum({id(p): p.numel() for part in around for p in part.parameters()}.values())
        lm_params += sum(layer.params for layer in info.layers)
        info = info.model_copy(update={"lm_params": lm_params})
        return LoadedModel(model, self, info, input_device(model), processor, place.folder, options.plan)

    def use(self, *, audio: bool) -> None:
        """Become the adapter of a checkpoint with or without an audio tower."""
        self.modalities = MODALITIES if audio else MODALITIES[:-1]  # type: ignore[misc]
        scope = "all" if audio else "image-video"
        self.default_suite, self.default_calibration = f"procedural-{scope}", f"procedural:{scope}"

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        prepared = [loaded.processor.prepare(sample) for sample in samples]
        return self.collate(loaded, prepared, [sample.id for sample in samples])

    def collate(self, loaded: LoadedModel, prepared: Sequence[Prepared], sample_ids: Sequence[str]) -> DecoderInputs:
        """Each sample through the towers by itself, so that a batch equals batches of one; padding on the left."""
        rows = [self._spliced(loaded, one) for one in prepared]
        width = max(len(ids) for _, ids in rows)
        pad = loaded.processor.tokenizer.pad_token_id
        embeds = rows[0][0].new_zeros(len(rows), width, rows[0][0].shape[-1])
        ids = rows[0][1].new_full((len(rows), width), pad)
        for row, (words, row_ids) in enumerate(rows):
            embeds[row, width - len(row_ids) :], ids[row, width - len(row_ids) :] = words, row_ids
        return DecoderInputs(embeds, (ids != pad).long(), _groups(ids, pad), sample_ids=tuple(sample_ids))

    def _spliced(self, loaded: LoadedModel, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Embeddings (T, d) and ids (T,) of one sample; media tokens carry the id of their kind."""
        import torch

        from .modeling import AUDIO, VIDEO

        model: Any = loaded.model
        media, kinds = [], []
        if prepared.frames is not None:
            encode = model.encode_image if prepared.still else model.encode_frames
            media.append(encode(prepared.frames.to(loaded.device)))
            kinds.append(VIDEO)
        if prepared.fbank is not None:
            media.append(model.encode_audio(prepared.fbank.to(loaded.device)))
            kinds.append(AUDIO)
        tokens = [torch.cat(media)] if media else []
        embeds, ids = model.splice(prepared.input_ids.to(loaded.device), tokens)
        if media:
            marks = [torch.full((len(part),), kind) for part, kind in zip(media, kinds, strict=True)]
            ids[ids < 0] = torch.cat(marks).to(ids)
        return embeds, ids


def _groups(ids: Tensor, pad: int) -> dict[str, Tensor]:
    from .modeling import AUDIO

    media, audio = ids < 0, ids == AUDIO
    return {"visual": media & ~audio, "audio": audio, "text": ~media & (ids != pad)}
