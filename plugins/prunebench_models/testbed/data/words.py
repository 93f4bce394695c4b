"""The closed vocabulary of the testbed: everything a question or an answer can say."""

from __future__ import annotations

__all__ = [
    "COLORS",
    "DIRECTIONS",
    "DURATIONS",
    "INSTRUMENTS",
    "MELODIES",
    "NUMBERS",
    "PITCHES",
    "QUADRANTS",
    "SHAPES",
    "SIDES",
    "SPECIAL_TOKENS",
    "VOCABULARY",
    "YES_NO",
]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<video>", "<audio>", "<answer>")

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
NUMBERS = tuple(str(n) for n in range(20))
YES_NO = ("yes", "no")
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
DIRECTIONS = ("up", "down", "left", "right")
SIDES = ("left", "middle", "right")
PITCHES = ("do", "re", "mi", "fa", "sol", "la")
MELODIES = ("rise", "fall", "same")
DURATIONS = ("short", "medium", "long")
INSTRUMENTS = ("flute", "clarinet", "violin", "bell")

_QUESTION_WORDS = (
    "what which where when how is are does do there the a of in at and or to than color shape object objects "
    "row column frame above below position corner many much tall tallest shortest taller bar bars plus minus "
    "digit digits difference sum larger smaller largest smallest number move moves way come comes before after "
    "first last second third none pitch tone tones melody long instrument plays length"
)

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *SPECIAL_TOKENS,
            *NUMBERS,
            *COLORS,
            *SHAPES,
            *YES_NO,
            *QUADRANTS,
            *DIRECTIONS,
            *SIDES,
            *PITCHES,
            *MELODIES,
            *DURATIONS,
            *INSTRUMENTS,
            *_QUESTION_WORDS.split(),
        )
    )
)
"""Token ``i`` of the tokenizer is ``VOCABULARY[i]``."""
