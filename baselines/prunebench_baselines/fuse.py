"""Several scores as one: a local criterion beside a global one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.config import parse_params, split_params
from prunebench.errors import BadParameter
from prunebench.plan import ScoreTable
from prunebench.plugins import get_plugins
from prunebench.strategy import PlanContext, ScoreStrategy, strategy_params
from prunebench_baselines.similarity import mid_ranks

__all__ = ["Fuse"]


@dataclass(frozen=True)
class Fuse(ScoreStrategy):
    """Removes the layers that several methods together can spare best: score(l) = Σ_m w_m f(s_m(l)) / Σ_m w_m.

    s_m is the score of method m; f makes methods comparable: ``rank`` is the share of the free layers that score less
    (equal ones count half); ``standardised`` is (s − mean) / standard deviation over the free layers. A layer that one
    of the methods protects stays. Where every method scores blocks, blocks are fused too, each among the blocks of its
    length; ``select=greedy`` fuses what the methods say after each removal.

    Args:
        scores: names of scoring methods, by commas.
        weights: a number > 0 for each, by commas; empty: all alike.
        combine: what is averaged.
        parts: parameters of the methods: ``topo.k=25;bi.group=text``.
    """

    name = "fuse"
    in_all = False  # which scores to fuse is for the user to say

    scores: str = "bi,topo"
    weights: str = ""
    combine: Literal["rank", "standardised"] = "rank"
    parts: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        members = self.members()
        self.shares()
        if other := [name for name, member in members.items() if member.kind != "layers"]:
            raise BadParameter(f"fuse: {other[0]!r} removes {members[other[0]].kind}, and only layers can be fused")
        # What a runner asks of a strategy holds for the fusion where it holds for one of its members.
        for flag in ("needs_model", "stochastic"):
            object.__setattr__(self, flag, any(getattr(member, flag) for member in members.values()))
        asking = [member for member in members.values() if member.needs_model]
        object.__setattr__(self, "weights_only", bool(asking) and all(member.weights_only for member in asking))

    def members(self) -> dict[str, ScoreStrategy]:
        """The methods by name, with their parameters set.

        Raises:
            UnknownName: no such method or parameter. BadParameter: a method without scores, or named twice.
        """
        plugins = get_plugins()
        given = [name.strip() for name in self.scores.split(",") if name.strip()]
        aliases = {name: plugins.get("strategies", name).name for name in given}
        if not given:
            raise BadParameter("fuse: name at least one score: -P scores=bi,topo")
        if len(set(aliases.values())) < len(given):
            raise BadParameter(f"fuse: scores={self.scores} names a method twice: name each once")
        classes = {name: plugins.get("strategies", name) for name in aliases.values()}
        for name, cls in classes.items():
            if not issubclass(cls, ScoreStrategy) or issubclass(cls, Fuse):
                raise BadParameter(f"fuse: {name!r} has no score of its own to fuse: name scoring methods")
        params = {}
        for key, value in parse_params(part for part in self.parts.split(";") if part.strip()).items():
            owner, dot, parameter = key.partition(".")
            params[f"{aliases.get(owner, owner)}.{parameter}" if dot else key] = value
        split = split_params(params, {name: list(strategy_params(cls)) for name, cls in classes.items()})
        return {name: cls.from_params(split[name]) for name, cls in classes.items()}

    def shares(self) -> np.ndarray:
        """The weights of the methods, in their order; they add up to 1."""
        count = len(self.members())
        texts = [text for text in self.weights.split(",") if text.strip()] or ["1"] * count
        try:
            values = np.array([float(text) for text in texts])
        except ValueError as error:
            raise BadParameter(f"fuse: weights={self.weights}: {error}") from error
        if len(values) != count or not (np.isfinite(values) & (values > 0)).all():
            raise BadParameter(f"fuse: weights={self.weights}: give {count} numbers > 0, one for each of {self.scores}")
        return values / values.sum()

    def requires(self) -> frozenset[str]:
        return frozenset().union(*(member.requires() for member in self.members().values()))

    def never_removed(self, context: PlanContext) -> frozenset[int]:
        return frozenset().union(*(member.protected_layers(context) for member in self.members().values()))

    def score(self, context: PlanContext) -> ScoreTable:
        tables = {}
        for name, member in self.members().items():
            own = dataclasses.replace(context, notes={}, artefacts={})  # warnings are shared, notes are told apart
            tables[name] = member.score_table(own)
            context.notes.update({name: own.notes} if own.notes else {})
            context.artefacts.update(own.artefacts)
        context.artefacts["fused scores"] = tables
        columns = {name: np.array(table.values) for name, table in tables.items()}
        if bad := [name for name, values in columns.items() if not np.isfinite(values).all()]:
            raise BadParameter(f"fuse: a score of {bad[0]!r} is not a finite number")
        shares = self.shares()
        values = self._mean(columns, self._free(context), shares)
        weighted = ", ".join(f"{name} × {share:.3g}" for name, share in zip(tables, shares, strict=True))
        return ScoreTable(
            values=tuple(values.tolist()),
            meaning=f"mean {self.combine.replace('rank', 'rank share')} of {weighted}",
            columns={name: tuple(values.tolist()) for name, values in columns.items()},
        )

    def windows(self, context: PlanContext) -> np.ndarray | None:
        found = {name: member.windows(context) for name, member in self.members().items()}
        if any(blocks is None for blocks in found.values()):
            return None
        free, shares = self._free(context), self.shares()
        fused = np.full((len(free) + 1,) * 2, np.nan)
        for gap in range(1, len(free) + 1):
            inside = np.array([free[a : a + gap].all() for a in range(len(free) + 1 - gap)])
            values = self._mean({name: np.diagonal(blocks, gap) for name, blocks in found.items()}, inside, shares)
            fused[np.arange(len(values)), np.arange(len(values)) + gap] = values
        return fused

    def rescore(self, context: PlanContext, removed: tuple[int, ...]) -> np.ndarray:
        first: dict[str, ScoreTable] = context.artefacts.get("fused scores", {})
        found = {}
        for name, member in self.members().items():
            fixed = type(member).rescore is ScoreStrategy.rescore and member.windows(context) is None
            own = dataclasses.replace(context, notes={}, artefacts={})
            found[name] = np.array(first[name].values) if fixed and name in first else member.rescore(own, removed)
        free = self._free(context)
        free[list(removed)] = False
        return self._mean(found, free, self.shares())

    def _free(self, context: PlanContext) -> np.ndarray:
        protected = self.protected_layers(context)
        return np.array([layer not in protected for layer in range(context.model.n_layers)])

    def _mean(self, columns: dict[str, np.ndarray], free: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Weighted mean of the columns after f, which looks at the free entries; NaN where one of them is NaN."""
        total = np.zeros(len(free))
        known = np.all([~np.isnan(values) for values in columns.values()], axis=0)
        for share, values in zip(shares, columns.values(), strict=True):
            among = values[free & known]
            if self.combine == "rank":
                total += share * mid_ranks(values, among) / max(len(among), 1)
            elif len(among) and np.ptp(among) > 0:  # a score that is the same everywhere has nothing to say
                total += share * (values - among.mean()) / among.std()
        return np.where(known, total, np.nan)
