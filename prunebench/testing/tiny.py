"""Random tiny models and a synthetic dataset: what checks run on where no model is named.

They are fixtures, not families that are supported: one plain decoder, and one whose configuration holds a list with an
entry per layer, which pruning has to shorten with the layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from prunebench_models.transformers_adapter import TransformersAdapter

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.dataset import SPLITS, Dataset
from prunebench.errors import BadParameter
from prunebench.measure.cost import describe
from prunebench.surgery import prune

__all__ = ["TINY_DATASETS", "TINY_MODELS", "VOCABULARY", "WORDS", "TinyGemma", "TinyLlama", "TinyMedia", "TinyText"]

VOCABULARY = 64
WORDS = [f"w{i}" for i in range(VOCABULARY)]
_END, _FIRST = 2, 3  # 0 pads, 1 begins


class _Words:
    def batch_decode(self, tokens: Any, skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(WORDS[t] for t in row if t >= _FIRST) for row in tokens.tolist()]


class _Tiny(TransformersAdapter):
    """Random weights, seeded; padding 0, beginning 1, end 2."""

    modalities: ClassVar[tuple[str, ...]] = ("text", "image", "video", "audio")
    default_calibration = "tiny-text"
    default_suite = None

    def build(self) -> Any:
        """The model with random weights."""
        raise NotImplementedError

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        import torch

        if options.path is not None:
            raise BadParameter(f"model {self.name!r} is made of random numbers: it takes no folder")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build().eval()
        for parameter in model.parameters():  # large enough that every layer matters
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        info = describe(model, self, name=self.name, revision=hashlib.sha256(state).hexdigest(), dtype="float32")
        loaded = LoadedModel(model, self, info, torch.device("cpu"), _Words(), plan=options.plan)
        return loaded if options.plan is None else prune(loaded, options.plan)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        import torch

        rows = [[(1, "text"), *_media(sample), *_words(sample.instruction)] for sample in samples]
        width = max(len(row) for row in rows)
        padded = [[(0, "padding")] * (width - len(row)) + row for row in rows]
        ids = torch.tensor([[token for token, _ in row] for row in padded])
        groups = {
            name: torch.tensor([[group == name for _, group in row] for row in padded])
            for name in ("visual", "audio", "text")
        }
        embeds = loaded.model.get_input_embeddings()(ids)
        return DecoderInputs(embeds, (ids != 0).long(), groups, sample_ids=tuple(s.id for s in samples))

    def answer_ids(self, loaded: LoadedModel, sample: Sample) -> list[int]:
        return [*(token for token, _ in _words(sample.answer or "")), _END]


def _words(text: str) -> list[tuple[int, str]]:
    """``w17`` is token 17; any other word is hashed."""
    known = {word: i for i, word in enumerate(WORDS)}
    hashed = (known.get(word) or _FIRST + sum(word.encode()) % (VOCABULARY - _FIRST) for word in text.split())
    return [(token, "text") for token in hashed]


def _media(sample: Sample) -> list[tuple[int, str]]:
    """A token for each quarter of an image, each frame of a video and each third of a sound."""
    parts: list[tuple[np.ndarray, str]] = []
    for image in sample.images:
        parts += [(patch, "visual") for half in np.array_split(image, 2) for patch in np.array_split(half, 2, axis=1)]
    if sample.video is not None:
        parts += [(frame, "visual") for frame in sample.video]
    if sample.audio is not None:
        parts += [(third, "audio") for third in np.array_split(np.abs(sample.audio) * 1e6, 3)]
    return [(_FIRST + int(part.sum()) % (VOCABULARY - _FIRST), group) for part, group in parts]


class TinyLlama(_Tiny):
    """A plain causal decoder with grouped-query attention."""

    name = "tiny-llama"

    def build(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            )
        )  # fmt: skip


class TinyGemma(_Tiny):
    """Sliding and full attention by a per-layer list: a stale list changes answers in silence."""

    name = "tiny-gemma3"

    def build(self) -> Any:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=6, head_dim=8,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, sliding_window=4,
                layer_types=["sliding_attention", "full_attention"] * 3,
            )
        )  # fmt: skip


class TinyText(Dataset):
    """Random words; the expected answer is one of two words."""

    name = "tiny-text"
    domains = ("a", "b")

    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        return [self._sample(i, split, seed, domain) for i in range(n)]

    def _sample(self, i: int, split: str, seed: int, domain: str | None) -> Sample:
        rng = np.random.default_rng([seed, i, SPLITS.index(split)])
        words = rng.integers(_FIRST, VOCABULARY, rng.integers(6, 14))
        return Sample(
            id=f"{split}/{seed}/{i}",
            instruction=" ".join(f"w{w}" for w in words),
            answer=f"w{3 + i % 2}",
            options=("w3", "w4"),
            domain=domain or self.domains[i % 2],
            kind="word",
            **self._media(i, rng),
        )

    def _media(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        return {}


class TinyMedia(TinyText):
    """The same words with an image, a clip, a sound or nothing, in turn: noise."""

    name = "tiny-media"

    def _media(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        if i % 4 == 1:
            return {"images": (rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),)}
        if i % 4 == 2:
            return {"video": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)}
        if i % 4 == 3:
            return {"audio": rng.uniform(-1, 1, 1600).astype(np.float32), "sampling_rate": 16000}
        return {}


TINY_MODELS = {adapter.name: adapter for adapter in (TinyLlama, TinyGemma)}
TINY_DATASETS = {dataset.name: dataset for dataset in (TinyText, TinyMedia)}
