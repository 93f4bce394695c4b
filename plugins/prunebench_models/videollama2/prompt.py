"""Prompts: the chat template with a place for the media, as token ids."""

from __future__ import annotations

from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from prunebench.errors import ModelError, first_line

from .modeling import AUDIO, IMAGE, VIDEO

__all__ = ["PLACES", "SYSTEM", "chat_text", "tokenize"]

PLACES = {"image": ("<image>", IMAGE), "video": ("<video>", VIDEO), "audio": ("<audio>", AUDIO), "text": ("", 0)}
"""Kind of sample → the tag in the prompt's text, and the id that stands for it."""

SYSTEM = (
    "<<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. Please ensure that your responses are socially unbiased and positive in nature.\nIf a question does not "
    "make any sense, or is not factually coherent, explain why instead of answering something not correct. If you "
    "don't know the answer to a question, please don't share false information.\n<</SYS>>"
)
"""What the Mistral variants were trained to see first: the public default system prompt of Llama 2, byte for byte."""


def chat_text(tokenizer: Any, instruction: str, kind: str, *, system: bool) -> str:
    """The prompt with its media tag.

    Args:
        tokenizer: with the checkpoint's chat template.
        instruction: the user's words.
        kind: ``image``, ``video``, ``audio`` or ``text``.
        system: whether `SYSTEM` goes before it. A template that knows no system role gets it in the user's turn.

    Raises:
        ModelError: no chat template, or one that fails.
    """
    content = f"{PLACES[kind][0]}\n{instruction}"
    messages = [{"role": "user", "content": content}]
    if not system:
        return _rendered(tokenizer, messages)
    try:
        return _rendered(tokenizer, [{"role": "system", "content": SYSTEM}, *messages])
    except ModelError:
        return _rendered(tokenizer, [{"role": "user", "content": f"{SYSTEM}\n\n{content}"}])


def tokenize(tokenizer: Any, text: str, kind: str) -> Tensor:
    """Token ids (tokens,) of a prompt; its first media tag becomes the negative id of its kind."""
    tag, place = PLACES[kind]
    pieces = text.split(tag, 1) if tag else [text]
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        ids += [place] * bool(number)
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError) as error:
        raise ModelError(f"the checkpoint's chat template cannot be used: {first_line(error)}") from error
