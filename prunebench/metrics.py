"""How one answer is scored against one question, 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample

__all__ = ["METRICS", "is_outside", "named_options", "normalise"]

_NUMERALS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15",
    "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20",
}  # fmt: skip


def normalise(text: str) -> str:
    """Lower case, single spaces, no final full stop."""
    return " ".join(text.lower().split()).rstrip(".")


def named_options(answer: str, options: Sequence[str]) -> tuple[str, ...]:
    """The different options that the first line of an answer names, in the order of `options`.

    An option counts where it stands as whole words, whatever its case and whatever marks stand around it. Where one
    option contains another ("top left", "left"), the longer one takes the words. A number from 0 to 20 may be spelled
    out.
    """
    lines = answer.strip().splitlines()
    words = _words(lines[0]) if lines else ()
    split = {option: _words(option) for option in options}
    longest_first = sorted((option for option in options if split[option]), key=lambda o: -len(split[o]))
    found: set[str] = set()
    place = 0
    while place < len(words):
        for option in longest_first:
            if words[place : place + len(split[option])] == split[option]:
                found.add(option)
                place += len(split[option]) - 1
                break
        place += 1
    return tuple(option for option in options if option in found)


def _words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers; a minus sign and a decimal point belong to their number."""
    found = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|\w+", text.lower())
    return tuple(_NUMERALS.get(word, word) for word in found)


def exact_match(answer: str, sample: Sample) -> float:
    """1 where the answer is the expected one, but for case, spaces and a final full stop."""
    return float(normalise(answer) == normalise(sample.answer or ""))


def option_match(answer: str, sample: Sample) -> float:
    """1 where the answer's first line names the expected option and no other one (see `named_options`)."""
    return float([normalise(option) for option in named_options(answer, sample.options)] == [_expected(sample)])


def _expected(sample: Sample) -> str:
    return normalise(sample.answer or "")


METRICS: dict[str, Callable[[str, Sample], float]] = {"exact_match": exact_match, "option_match": option_match}
"""By the name that a suite's task gives."""


def is_outside(metric: str, answer: str, sample: Sample) -> bool:
    """True where a question with options has an answer, and the answer is none of them (open questions have none)."""
    if not answer.strip() or not sample.options:
        return False
    if metric == "option_match":
        return len(named_options(answer, sample.options)) != 1
    return normalise(answer) not in {normalise(option) for option in sample.options}
