"""The testbed's questions as a dataset: three disjoint splits, made on demand from a seed."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from prunebench.calibration.samples import Sample
from prunebench.dataset import SPLITS, Dataset

from . import arithmetic, audio, general, video

__all__ = ["DOMAINS", "SPLITS", "TestbedDataset", "ask"]

DOMAINS: dict[str, ModuleType] = {"general": general, "math": arithmetic, "video": video, "audio": audio}
REFERENCE_SIZE = 500  # questions per domain behind ``majority`` and ``chance``

_TRIES = 3000


class TestbedDataset(Dataset):
    """Questions about procedural images, clips and sounds; nothing is read from disk.

    Sample ``i`` depends on (split, seed, domain, i) alone. Question kinds take turns and so do the answers within a
    kind: the answer is chosen first and a scene is drawn for it, so that no kind has a favourite answer.
    """

    __test__ = False
    name = "testbed"
    domains: tuple[str, ...] = tuple(DOMAINS)

    def samples(self, split: str, n: int, *, seed: int = 0, domain: str | None = None) -> list[Sample]:
        """The first ``n`` samples of a split.

        Args:
            split: ``"train"``, ``"calibration"`` or ``"test"``; their random streams never meet.
            n: number of samples.
            seed: selects another stream of the same split.
            domain: one domain, or None for all of them in turn.

        Raises:
            ValueError: for an unknown split or domain.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        if domain is not None and domain not in DOMAINS:
            raise ValueError(f"unknown domain {domain!r}; choose from {', '.join(DOMAINS)}")
        if domain is not None:
            return [_sample(split, seed, domain, index) for index in range(n)]
        names = self.domains
        return [_sample(split, seed, names[index % len(names)], index // len(names)) for index in range(n)]

    def kinds(self, domain: str) -> dict[str, tuple[str, ...]]:
        """Question kinds of a domain with their closed sets of answers."""
        return dict(DOMAINS[domain].KINDS)

    def majority(self, domain: str) -> float:
        """Accuracy in [0, 1] of the best constant answer per question kind, on the first 500 test questions."""
        from prunebench.evaluate_local import majority_level

        return majority_level(self.samples("test", REFERENCE_SIZE, domain=domain))

    def chance(self, domain: str) -> float:
        """Accuracy in [0, 1] of a uniform guess among each kind's options, on the first 500 test questions."""
        from prunebench.evaluate_local import chance_level

        level = chance_level(self.samples("test", REFERENCE_SIZE, domain=domain))
        assert level is not None  # every question here has options
        return level


def ask(
    module: ModuleType, scene: object, kind: str, rng: np.random.Generator, answer: str | None = None
) -> tuple[str, str] | None:
    """One (question, answer) of a kind about a scene, or None where there is none.

    Without a wanted ``answer`` each answer that the scene allows is equally likely.
    """
    found = module.candidates(scene, kind, rng)
    if answer is None and found:
        answers = sorted({pair[1] for pair in found})
        answer = answers[int(rng.integers(len(answers)))]
    found = [pair for pair in found if pair[1] == answer]
    return found[int(rng.integers(len(found)))] if found else None


def _sample(split: str, seed: int, domain: str, index: int) -> Sample:
    module = DOMAINS[domain]
    rng = np.random.default_rng([SPLITS.index(split), tuple(DOMAINS).index(domain), seed, index])
    kinds = list(module.KINDS)
    kind = kinds[index % len(kinds)]
    options = module.KINDS[kind]
    wanted = options[index // len(kinds) % len(options)]
    for attempt in range(_TRIES):
        scene = module.scene(rng, kind=kind) if domain == "math" else module.scene(rng)
        pair = ask(module, scene, kind, rng, wanted)
        if pair is not None:
            break
        if attempt == _TRIES - 2:
            raise RuntimeError(f"no {domain} scene answers {kind} with {wanted}")
    media = module.render([scene], rng)[0]
    return Sample(
        id=f"{domain}/{split}/{seed}/{index}",
        instruction=pair[0],
        answer=pair[1],
        domain=domain,
        kind=kind,
        images=(media,) if domain in ("general", "math") else (),
        video=media if domain == "video" else None,
        audio=media if domain == "audio" else None,
        sampling_rate=audio.SAMPLING_RATE if domain == "audio" else None,
        options=options,
    )
