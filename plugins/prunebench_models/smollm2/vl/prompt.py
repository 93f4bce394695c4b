"""How a question is written for SmolLM2-VL; training and use share it."""

from __future__ import annotations

from typing import Any

__all__ = ["TOKENS_PER_IMAGE", "answer_ids", "begin_id", "instruction_ids"]

TOKENS_PER_IMAGE = 16


def begin_id(tokenizer: Any) -> int:
    """The token in front of everything."""
    return int(tokenizer.bos_token_id)


def instruction_ids(tokenizer: Any, instruction: str) -> list[int]:
    """The instruction between two line breaks."""
    return list(tokenizer(f"\n{instruction}\n", add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """The answer and the end-of-turn token."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]
