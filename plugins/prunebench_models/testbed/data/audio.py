"""Domain ``audio``: one second of one to four tones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .words import DURATIONS, INSTRUMENTS, MELODIES, NUMBERS, PITCHES

__all__ = ["HELPERS", "KINDS", "SAMPLES", "SAMPLING_RATE", "STEPS", "AudioScene", "candidates", "render", "scene"]

SAMPLING_RATE = 16000
SAMPLES = 16000
STEPS = 16  # tones begin and end on a grid of 1/16 second, one step per audio token

KINDS: dict[str, tuple[str, ...]] = {
    "pitch": PITCHES,
    "melody": MELODIES,
    "tones": NUMBERS[1:5],
    "duration": DURATIONS,
    "instrument": INSTRUMENTS,
}
HELPERS = ("nth_pitch", "nth_instrument", "nth_duration")

DURATION_STEPS = (1, 2, 4)
_FREQUENCIES = 260.0 * 1.33 ** np.arange(len(PITCHES))  # hertz
# (multiple of the fundamental, amplitude) per instrument
_PARTIALS = (
    ((1, 1.0),),
    ((1, 0.7), (3, 0.5), (5, 0.3)),
    ((1, 0.5), (2, 0.4), (3, 0.3), (4, 0.25), (5, 0.2)),
    ((1, 0.6), (1.52, 0.5), (2.76, 0.3)),
)
_ORDINALS = ("first", "last")
_STEP_SAMPLES = SAMPLES // STEPS


@dataclass(frozen=True)
class AudioScene:
    """Tones in order of time: pitch, instrument and duration class, and the step at which each begins."""

    pitch: list[int]
    instrument: list[int]
    duration: list[int]
    onset: list[int]


def scene(rng: np.random.Generator, easy: bool = False) -> AudioScene:
    """One to four tones (``easy``: one or two) with pauses between them; every third melody ends where it began."""
    n = int(rng.integers(1, 3) if easy else rng.integers(1, 5))
    while True:
        duration = rng.integers(0, 3, n)
        steps = [DURATION_STEPS[d] for d in duration]
        spare = STEPS - sum(steps) - (n - 1)
        if spare >= 0:
            break
    rests = rng.multinomial(rng.integers(0, spare + 1), np.full(n, 1 / n))
    onsets, step = [], 0
    for length, rest in zip(steps, rests, strict=True):
        onsets.append(int(step + rest))
        step += int(rest) + length + 1
    pitch = rng.integers(0, len(PITCHES), n)
    if rng.random() < 0.25:
        pitch[-1] = pitch[0]
    instrument = rng.integers(0, len(INSTRUMENTS), n)
    return AudioScene(pitch.tolist(), instrument.tolist(), duration.tolist(), onsets)


def render(scenes: list[AudioScene], rng: np.random.Generator) -> np.ndarray:
    """float32 waveforms (n, SAMPLES) in [-1, 1]: slightly detuned tones of varied loudness over noise."""
    level = rng.uniform(0.002, 0.02, (len(scenes), 1)).astype(np.float32)
    waves = rng.standard_normal((len(scenes), SAMPLES), dtype=np.float32) * level
    for index, item in enumerate(scenes):
        for pitch, instrument, duration, onset in zip(
            item.pitch, item.instrument, item.duration, item.onset, strict=True
        ):
            length = DURATION_STEPS[duration] * _STEP_SAMPLES
            frequency = _FREQUENCIES[pitch] * rng.uniform(0.975, 1.025)
            seconds = np.arange(length, dtype=np.float32) / SAMPLING_RATE
            tone = np.zeros(length, dtype=np.float32)
            for multiple, amplitude in _PARTIALS[instrument]:
                phase = np.float32(rng.uniform(0, 2 * np.pi))
                tone += np.float32(amplitude) * np.sin(np.float32(2 * np.pi * frequency * multiple) * seconds + phase)
            ramp = np.minimum(1.0, np.minimum(np.arange(length), np.arange(length)[::-1]) / 120).astype(np.float32)
            begin = onset * _STEP_SAMPLES
            waves[index, begin : begin + length] += tone * ramp * np.float32(rng.uniform(0.25, 0.55))
    return np.clip(waves, -1.0, 1.0)


def candidates(item: AudioScene, kind: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """All (question, answer) of one kind that make sense for this sound."""
    pitch, n = item.pitch, len(item.pitch)
    if kind == "pitch":
        return [(f"what is the pitch of the {_ORDINALS[i]} tone", PITCHES[pitch[-i]]) for i in (0, 1)]
    if kind == "instrument":
        return [(f"which instrument plays the {_ORDINALS[i]} tone", INSTRUMENTS[item.instrument[-i]]) for i in (0, 1)]
    if kind == "duration":
        return [(f"how long is the {_ORDINALS[i]} tone", DURATIONS[item.duration[-i]]) for i in (0, 1)]
    if kind == "tones":
        return [("how many tones are there", NUMBERS[n])]
    if kind == "melody":
        if n == 1:
            return []
        answer = MELODIES[2] if pitch[0] == pitch[-1] else MELODIES[int(pitch[0] > pitch[-1])]
        return [("does the melody rise or fall", answer)]
    values = {
        "nth_pitch": ("pitch", [PITCHES[p] for p in pitch]),
        "nth_instrument": ("instrument", [INSTRUMENTS[p] for p in item.instrument]),
        "nth_duration": ("length", [DURATIONS[d] for d in item.duration]),
    }
    what, answers = values[kind]
    return [(f"what is the {what} of tone {i + 1}", answer) for i, answer in enumerate(answers)]
