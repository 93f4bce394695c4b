"""A model with calibration data, loaded when it is first needed: what strategies are checked on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions, ModelAdapter
from prunebench.calibration.trace import Trace
from prunebench.dataset import Dataset, open_dataset
from prunebench.errors import BadParameter, UnknownName
from prunebench.probing import Remembered

if TYPE_CHECKING:
    from prunebench.plugins import Plugins
    from prunebench.probing import Probe

__all__ = ["Bench", "find_adapter", "find_dataset", "tiny_benches"]

SAMPLES = 48
"""Calibration samples of a bench: enough for statistics with a few dozen neighbours, few enough for seconds."""

PROBE_SAMPLES = 4
"""Samples of a bench's probe: a search through every sub-layer asks it hundreds of times."""


class Bench:
    """A model and its calibration traces.

    Args:
        name: shown beside each check.
        load: makes the model; called once, at the first need.
        dataset: makes the source of calibration samples.
        n_samples: how many of them.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        dataset: Callable[[LoadedModel], Dataset],
        n_samples: int = SAMPLES,
    ) -> None:
        self.name = name
        self.n_samples = n_samples
        self._load, self._dataset = load, dataset
        self._loaded: LoadedModel | None = None
        self._traces: dict[frozenset[str], Trace] = {}
        self._remembered = Remembered()

    @classmethod
    def named(cls, plugins: Plugins, model: str, options: LoadOptions | None = None) -> Bench:
        """The bench of a registered model, or of one of the kit's tiny ones, on its default calibration data."""
        adapter_class, asked = find_adapter(plugins, model, options or LoadOptions())

        def dataset(loaded: LoadedModel) -> Dataset:
            return find_dataset(plugins, loaded.adapter.default_calibration)

        return cls(model, lambda: adapter_class().load(asked), dataset)

    @property
    def loaded(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def trace(self, statistics: frozenset[str]) -> Trace | None:
        """A copy of its own of the trace with exactly these statistics; None where none are asked for."""
        from prunebench.calibration.collect import calibrate

        if not statistics:
            return None
        if statistics not in self._traces:
            samples = self._dataset(self.loaded).samples("calibration", self.n_samples)
            self._traces[statistics] = calibrate(self.loaded, samples, statistics)
        kept = self._traces[statistics]
        return Trace(kept.meta, {name: array.copy() for name, array in kept.arrays.items()})

    def probe(self) -> Probe:
        """The model and its calibration samples, to be asked what it loses."""
        from prunebench.probing import Probe

        n_samples = min(self.n_samples, PROBE_SAMPLES)
        samples = self._dataset(self.loaded).samples("calibration", n_samples)
        return Probe(self.loaded, samples, remembered=self._remembered)

    def inputs(self) -> DecoderInputs:
        """Two encoded samples."""
        import torch

        samples = self._dataset(self.loaded).samples("calibration", 2 if self.loaded.adapter.batching else 1)
        with torch.inference_mode():
            return self.loaded.encode(samples)

    def forget(self) -> None:
        """Load anew at the next need: after something has damaged the model."""
        self._loaded = None
        self._traces = {}
        self._remembered = Remembered()


def tiny_benches() -> list[Bench]:
    """The kit's own models on samples with text, images, clips and sounds."""
    from prunebench.testing.tiny import TINY_MODELS, TinyMedia

    return [
        Bench(name, lambda adapter=adapter: adapter().load(), lambda _loaded: TinyMedia())
        for name, adapter in TINY_MODELS.items()
    ]


def find_adapter(plugins: Plugins, model: str, options: LoadOptions) -> tuple[type[ModelAdapter], LoadOptions]:
    """The adapter that ``name`` or ``name:reference`` stands for, and `options` with that name in them.

    Raises:
        UnknownName, BadParameter: no such model, or a reference where the adapter takes none.
    """
    from dataclasses import replace

    from prunebench.testing.tiny import TINY_MODELS

    word, colon, reference = model.partition(":")
    registry = plugins.registry("models")
    if word not in registry and word not in TINY_MODELS:
        raise UnknownName("model", word, {*registry, *TINY_MODELS})
    adapter = registry[word].value if word in registry else TINY_MODELS[word]
    if colon and not adapter.takes_reference:
        raise BadParameter(f"model {word!r} takes nothing after a colon, got {reference!r}")
    return adapter, replace(options, name=word, reference=reference if colon else None)


def find_dataset(plugins: Plugins, name: str | None) -> Dataset:
    """The registered dataset of that name, or the kit's own; the kit's mixed one where there is no name."""
    from prunebench.testing.tiny import TINY_DATASETS, TinyMedia

    if name is None:
        return TinyMedia()
    if name not in plugins.registry("datasets") and name in TINY_DATASETS:
        return TINY_DATASETS[name]()
    return open_dataset(plugins, name)
