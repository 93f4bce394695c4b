"""An unpackaged plugin with random tiny models and a synthetic dataset: what the contract tests run on."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from prunebench_models.transformers_adapter import TransformersAdapter

from prunebench import Dataset, DecoderInputs, LoadedModel, LoadOptions, Sample, hookimpl
from prunebench.measure.cost import describe

VOCABULARY = 64
WORDS = [f"w{i}" for i in range(VOCABULARY)]


class _Words:
    def batch_decode(self, tokens, skip_special_tokens=True):
        return [" ".join(WORDS[t] for t in row if t > 2) for row in tokens.tolist()]


class _Tiny(TransformersAdapter):
    """Random weights, seeded; padding 0, beginning 1, end 2."""

    default_calibration = "tiny-text"
    default_suite = None

    def build(self):
        raise NotImplementedError

    def load(self, options=LoadOptions()):
        torch.manual_seed(0)
        model = self.build().eval()
        for parameter in model.parameters():  # large enough that every layer matters
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        info = describe(model, self, name=self.name, revision=hashlib.sha256(state).hexdigest(), dtype=options.dtype)
        return LoadedModel(model, self, info, torch.device("cpu"), _Words())

    def encode(self, loaded, samples):
        rows = [[1, *(int(word[1:]) for word in sample.instruction.split())] for sample in samples]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = (ids != 0).long()
        embeds = loaded.model.get_input_embeddings()(ids)
        visual = torch.zeros_like(mask, dtype=torch.bool)
        return DecoderInputs(
            embeds, mask, {"visual": visual, "text": mask.bool()}, sample_ids=tuple(s.id for s in samples)
        )


class TinyLlama(_Tiny):
    """A plain causal decoder with grouped-query attention."""

    name = "tiny-llama"

    def build(self):
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

    def build(self):
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

    def samples(self, split, n, *, seed=0, domain=None):
        found = []
        for i in range(n):
            rng = np.random.default_rng([seed, i, ["train", "calibration", "test"].index(split)])
            words = rng.integers(3, VOCABULARY, rng.integers(6, 14))
            found.append(
                Sample(
                    id=f"{split}/{seed}/{i}",
                    instruction=" ".join(f"w{w}" for w in words),
                    answer=f"w{3 + i % 2}",
                    options=("w3", "w4"),
                    domain=domain or self.domains[i % 2],
                    kind="word",
                )
            )
        return found


@hookimpl
def prunebench_register_models(register):
    register(TinyLlama)
    register(TinyGemma)


@hookimpl
def prunebench_register_datasets(register):
    register(TinyText)
