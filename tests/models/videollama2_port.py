"""What a checker of recorded outputs asks of a port, answered by the adapter."""

from __future__ import annotations

from typing import Any

from prunebench_models.videollama2.adapter import VideoLlama2
from prunebench_models.videollama2.processing import Prepared
from torch import Tensor

from prunebench import LoadOptions
from prunebench.adapter import DecoderInputs

Media = tuple[Any, str] | None


class Port:
    """A checkpoint folder as the adapter loads it, fed with token ids and preprocessed media.

    ``input_ids`` (1, L) hold -200, -201 or -202 where media go. ``mm`` is None, (pixels (T, 3, H, W), "video" or
    "image"), (filterbanks (1, frames, 128), "audio"), or ({"video": pixels, "audio": filterbanks}, "video").
    """

    def __init__(self, folder: str, **options: Any) -> None:
        self.loaded = VideoLlama2().load(LoadOptions(path=folder, **options))

    def inputs_embeds(self, input_ids: Tensor, mm: Media) -> Tensor:
        """(1, tokens, d) with the media in place."""
        return self._inputs(input_ids, mm).embeds

    def logits(self, input_ids: Tensor, mm: Media) -> Tensor:
        """(1, tokens, vocabulary)."""
        return self.loaded.adapter.forward(self.loaded, self._inputs(input_ids, mm))

    def hidden_states(self, input_ids: Tensor, mm: Media) -> list[Tensor]:
        """Input of layer 0 and output of every layer, the last one after the final norm."""
        states: list[Tensor] = []
        layers = self.loaded.layers
        handles = [layers[0].register_forward_pre_hook(lambda _module, args: states.append(args[0]))]
        handles += [layer.register_forward_hook(lambda _module, _args, out: states.append(out)) for layer in layers]
        try:
            self.logits(input_ids, mm)
        finally:
            for handle in handles:
                handle.remove()
        return [*states[:-1], self.loaded.decoder.norm(states[-1])]

    def generate(self, input_ids: Tensor, mm: Media, n: int) -> list[int]:
        """`n` greedy tokens."""
        inputs = self._inputs(input_ids, mm)
        tokens = self.loaded.model.generate(
            inputs_embeds=inputs.embeds, attention_mask=inputs.attention_mask, max_new_tokens=n, do_sample=False
        )
        return tokens[0].tolist()

    def prompt(self, instruct: str, modal: str) -> tuple[str, Tensor]:
        """The prompt's text, and its ids (1, L)."""
        text, ids = self.loaded.processor.prompt(instruct, modal)
        return text, ids[None]

    def _inputs(self, input_ids: Tensor, mm: Media) -> DecoderInputs:
        media, kind = mm if mm is not None else (None, "text")
        prepared = Prepared(input_ids[0])
        if kind == "audio":
            prepared.fbank = media
        elif isinstance(media, dict):
            prepared.frames, prepared.fbank = media["video"], media["audio"]
        else:
            prepared.frames, prepared.still = media, kind == "image"
        adapter = self.loaded.adapter
        return adapter.collate(self.loaded, [prepared], ["recorded"])
