"""What calibration leaves behind: arrays in one safetensors file, named by the hash of what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from prunebench import jsonio
from prunebench.errors import CalibrationError, StoreError, UsageError
from prunebench.plan import first_problem

__all__ = ["Trace", "TraceMeta", "trace_key"]

SCHEMA_VERSION = 1


class TraceMeta(BaseModel):
    """Identity and cost of a trace.

    ``key`` names the file: it hashes model revision, dtype, samples and code version of the statistics. ``groups`` are
    the token groups in the order of the arrays' group axis. ``unavailable`` are the statistics that were asked for
    and that this architecture does not give, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    key: str
    model: str
    revision: str
    dtype: str
    n_layers: int
    hidden_size: int
    n_samples: int
    fingerprint: str
    groups: tuple[str, ...]
    statistics: tuple[str, ...]
    domains: tuple[str, ...]
    sample_ids: tuple[str, ...]
    tokens: int
    seconds: float
    unavailable: dict[str, str] = {}


def trace_key(model: str, revision: str, dtype: str, fingerprint: str) -> str:
    """Name of the trace of these samples through these weights; the set of statistics may grow under one name."""
    parts = {"schema": SCHEMA_VERSION, "model": model, "revision": revision, "dtype": dtype, "samples": fingerprint}
    return jsonio.digest(parts)[:24]


class Trace:
    """Calibration statistics of one model on one set of samples.

    N samples, L layers, G token groups, d hidden size. Hidden state 0 is the input of layer 0; state l + 1 is the raw
    output of layer l, before any final norm. Arrays present depend on the statistics that were asked for:

    ===================== ======================== =================================================================
    statistic             arrays                   meaning
    ===================== ======================== =================================================================
    ``token_cosine``      ``token_cosine``         (N, G, L+1, L+1) sum over a group's tokens of cos(h_a[t], h_b[t])
    ``norms``             ``state_norm``           (N, G, L+1) sum over tokens of ‖h_l[t]‖
    \\                     ``update_norm``          (N, G, L) sum over tokens of ‖h_{l+1}[t] − h_l[t]‖
    ``sublayer_cosine``   ``sublayer_cosine``      (N, G, L, 2) sum over tokens of the residual's cosine over the
    \\                     \\                        attention [0] and over the MLP [1]
    ``pooled``            ``pooled``               (N, 3, L+1, d) mean visual, mean text, last state
    ``points.<pooling>``  ``points.<pooling>``     (N, L, d) one point per sample and layer, from layer outputs
    ``attention_``        ``attention_``           (N, T) importance of each token by attention, mean over layers, in
    ``importance``        ``importance``           order of position; 0 beyond a sample's tokens
    ``important_``        ``important_cosine=p``   (N, 3, L) sum of cos(h_l, h_{l+1}) over the share p of the media and
    ``cosine=p``          \\                        of the text tokens with the highest importance: both, media, text
    \\                     ``….count``              (N, 3) how many tokens that were
    ``token_states=m``    ``token_states=m``       (N, m, L+1, d) states of m tokens per sample: see `tokens`
    ``mlp_outputs=m``     ``mlp_outputs=m``        (N, m, L, d) what each MLP adds to the stream at the same tokens
    \\                     ``….positions``          (N, m) position in the sample, −1 where it has fewer tokens
    \\                     ``….groups``             (N, m) 0 visual, 1 audio, 2 text, 3 other, −1 no token
    \\                     ``….scale``              (N, m, L[+1]) factor of float16 vectors; absent where float32
    (always)              ``token_count``          (N, G) tokens behind each sum
    ===================== ======================== =================================================================

    Sums and counts are kept apart, so that token means, sample means and bootstraps over samples come from one pass.
    A statistic that takes a value has a default: ``token_states`` is ``token_states=16``.
    """

    def __init__(self, meta: TraceMeta, arrays: Mapping[str, np.ndarray]) -> None:
        self.meta = meta
        self.arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            name = _one_spelling(name)
        if reason := self.meta.unavailable.get(name):
            raise CalibrationError(reason)
        if name not in self.arrays:
            raise CalibrationError(
                f"the trace holds no {name!r} (it has: {', '.join(sorted(self.arrays))}): "
                "name it in the strategy's requires()"
            )
        return self.arrays[name]

    def has(self, statistics: frozenset[str]) -> bool:
        """Whether all of `statistics` were collected, in any spelling, or asked for in vain (reading then says why)."""
        return {_one_spelling(name) for name in statistics} <= {*self.meta.statistics, *self.meta.unavailable}

    @property
    def n_layers(self) -> int:
        return self.meta.n_layers

    def group(self, name: str) -> int:
        """Index of a token group on the group axis."""
        if name not in self.meta.groups:
            raise CalibrationError(f"no token group {name!r} in the trace: it has {', '.join(self.meta.groups)}")
        return self.meta.groups.index(name)

    def rows(self, domain: str | None = None) -> np.ndarray:
        """Indices of the samples of a domain; all where `domain` is None."""
        if domain is None:
            return np.arange(self.meta.n_samples)
        rows = np.flatnonzero(np.array(self.meta.domains) == domain)
        if not len(rows):
            known = sorted(set(self.meta.domains))
            raise CalibrationError(f"no calibration sample of domain {domain!r}: the trace has {', '.join(known)}")
        return rows

    def mean_cosine(self, group: str = "all", *, average: str = "tokens", domain: str | None = None) -> np.ndarray:
        """Mean token cosine between all hidden states, (L+1, L+1).

        Args:
            group: token group.
            average: ``tokens`` weighs every token alike, ``samples`` every sample alike.
            domain: only samples of this domain.
        """
        rows = self.rows(domain)
        sums = self["token_cosine"][rows, self.group(group)].astype(np.float64)
        counts = self["token_count"][rows, self.group(group)].astype(np.float64)
        filled = counts > 0
        if not filled.any():
            raise CalibrationError(f"no token of group {group!r} in the calibration samples")
        if average == "tokens":
            return sums[filled].sum(0) / counts[filled].sum()
        return (sums[filled] / counts[filled, None, None]).mean(0)

    def tokens(self, name: str, index: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Vectors of the kept tokens at one layer or layer boundary, all samples in order, (n, d) float32.

        Two statistics with the same number of tokens per sample keep the same tokens, in the same order.

        Args:
            name: ``token_states=m`` (boundary `index`, 0..L) or ``mlp_outputs=m`` (layer `index`).
            index: which.
            rows: indices of samples; all where None.
        """
        values = self[name]
        name = _one_spelling(name)
        rows = self.rows() if rows is None else np.asarray(rows)
        there = self[f"{name}.positions"][rows] >= 0
        found = values[rows, :, index][there].astype(np.float32)
        if f"{name}.scale" in self.arrays:
            found *= self.arrays[f"{name}.scale"][rows, :, index][there][:, None]
        return found

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write ``<key>.safetensors``, whole or not at all."""
        from safetensors.numpy import save_file

        path = Path(folder) / f"{self.meta.key}.safetensors"
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        header = {"meta": self.meta.model_dump_json(), "sha256": _checksum(arrays)}
        jsonio.write_atomically(path, lambda temporary: save_file(arrays, str(temporary), metadata=header))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace and check that it is whole.

        Raises:
            StoreError: missing, truncated, altered, or of another schema.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except FileNotFoundError as error:
            raise StoreError(f"no such trace: {path}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise StoreError(
                f"trace {path} is damaged ({error}): remove it, and the next run makes it again"
            ) from error
        if "meta" not in header or header.get("sha256") != _checksum(arrays):
            raise StoreError(f"trace {path} is damaged (checksum differs): remove it, and the next run makes it again")
        try:
            return cls(TraceMeta.model_validate_json(header["meta"]), arrays)
        except ValidationError as error:
            raise StoreError(f"trace {path} is of another version ({first_problem(error)}): remove it") from error


def _one_spelling(name: str) -> str:
    """The canonical name of a statistic; what is no statistic's name stays as it is."""
    from prunebench.calibration.statistics import canonical

    try:
        return canonical(name)
    except UsageError:
        return name


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
