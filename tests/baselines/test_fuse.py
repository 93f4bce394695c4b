"""Fused scores against the formula, and what a fusion takes over from its members."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from prunebench_baselines.angular import Angular
from prunebench_baselines.bi import BlockInfluence
from prunebench_baselines.fuse import Fuse
from prunebench_topology.scoring import topology_scores
from prunebench_topology.strategy import Topology

from prunebench.errors import BadParameter, BudgetError, UnknownName
from prunebench.selection import RULES, run_scores
from tests.traces import context_of, random_states, trace_of


def points_of(states):
    """One point per sample and layer: the last token's output."""
    return {"points.last": np.stack([stream[1:, -1] for stream in states])}


@pytest.fixture(scope="module")
def trace():
    states = random_states(11, n_samples=24)
    return trace_of(states, **points_of(states))


def plain(columns, weights, combine, free):
    """The weighted mean of ranks or of standardised scores, over the free layers."""
    total = np.zeros(len(free))
    for values, weight in zip(columns, weights, strict=True):
        inside = values[free]
        if combine == "rank":
            f = [sum(v < value for v in inside) + 0.5 * sum(v == value for v in inside) for value in values]
            total += weight * np.array(f) / len(inside)
        else:
            total += weight * (values - inside.mean()) / inside.std()
    return total / sum(weights)


@pytest.mark.parametrize("combine", ["rank", "standardised"])
@pytest.mark.parametrize("weights", ["", "2,0.5"])
def test_fuse_is_the_weighted_mean(trace, combine, weights):
    fuse = Fuse(scores="bi,topo", weights=weights, combine=combine, parts="topo.k=7;bi.group=text")
    own = [
        BlockInfluence(group="text").score(context_of(trace, 3)),
        np.array(Topology(k=7).score(context_of(trace, 3)).values),
    ]
    free = np.array([False, *[True] * 6, False])  # topo keeps the first and the last layer
    expected = plain(own, [float(w) for w in weights.split(",")] if weights else [1, 1], combine, free)
    plan = fuse.plan(context_of(trace, 3))
    np.testing.assert_allclose(plan.scores.values, expected, atol=1e-12)
    order = sorted(range(1, 7), key=lambda layer: (-expected[layer], -layer))
    assert plan.removed_layers == tuple(sorted(order[:3])) and plan.provenance.protected == (0, 7)
    for name, values in zip(("bi", "topo"), own, strict=True):
        np.testing.assert_allclose(plan.scores.columns[name], values)


@pytest.mark.parametrize("combine", ["rank", "standardised"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["bi", "angular", "topo"])
def test_a_fusion_of_one_is_that_one(trace, rule, name, combine):
    cls = {"bi": BlockInfluence, "angular": Angular, "topo": Topology}[name]
    params = {"k": 7} if name == "topo" else {}
    fuse = Fuse(scores=name, combine=combine, select=rule, parts="topo.k=7" if params else "")
    for n in (1, 2):
        expected = cls(select=rule, **params).plan(context_of(trace, n))
        found = fuse.plan(context_of(trace, n))
        if combine == "rank" and name == "topo" and rule in ("contiguous", "triplet"):
            assert len(found.removed_layers) == n  # the mean rank of a block is not the rank of its mean
        else:
            assert found.removed_layers == expected.removed_layers


def test_blocks_are_fused_where_all_score_blocks(trace):
    fuse = Fuse(scores="bi,angular", combine="standardised", select="contiguous")
    parts = [BlockInfluence().windows(context_of(trace, 3)), Angular().windows(context_of(trace, 3))]
    windows = fuse.windows(context_of(trace, 3))
    for gap in range(1, 8):
        columns = [np.diagonal(part, gap) for part in parts]
        expected = plain(columns, [1, 1], "standardised", np.ones(len(columns[0]), dtype=bool))
        np.testing.assert_allclose(np.diagonal(windows, gap), expected, atol=1e-9)
    start = int(np.argmax(np.diagonal(windows, 3)))
    assert fuse.plan(context_of(trace, 3)).removed_layers == tuple(range(start, start + 3))
    assert Fuse(scores="bi,topo").windows(context_of(trace, 3)) is None


def test_greedy_fuses_what_the_members_say_after_each_removal(trace):
    fuse = Fuse(scores="bi,topo", select="greedy", parts="topo.k=7")
    gone: list[int] = []
    points = np.swapaxes(trace["points.last"], 0, 1)
    blocks = BlockInfluence().windows(context_of(trace, 4))
    for _ in range(4):
        kept = [layer for layer in range(8) if layer not in gone]
        topo = np.full(8, np.nan)
        topo[kept] = topology_scores(points[kept], k=7).scores
        local = run_scores(blocks, gone) if gone else np.diagonal(blocks, 1)
        free = np.array([0 < layer < 7 and layer not in gone for layer in range(8)])
        fused = plain([local, topo], [1, 1], "rank", free)
        gone.append(max(np.flatnonzero(free), key=lambda layer: (fused[layer], layer)))
    assert fuse.plan(context_of(trace, 4)).provenance.notes["removal_order"] == gone


def test_it_asks_for_what_its_members_ask_for(monkeypatch):
    assert Fuse().requires() == {"token_cosine", "points.last"}
    assert Fuse(parts="topo.points=mean").requires() == {"token_cosine", "points.mean"}
    assert Fuse(scores="last_n,cosine").requires() == {"token_cosine"}
    assert not Fuse().needs_model and not Fuse().stochastic
    assert Fuse(scores="bi,random").stochastic and not Fuse.stochastic
    monkeypatch.setattr(BlockInfluence, "needs_model", True)
    assert Fuse().needs_model and not Fuse(scores="topo").needs_model


def test_a_constant_score_says_nothing(trace):
    flat = trace_of([np.ones_like(stream) for stream in random_states(0)])
    for combine in ("rank", "standardised"):
        plan = Fuse(scores="bi,middle_n", combine=combine).plan(context_of(flat, 2))
        assert plan.removed_layers == (3, 4)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"scores": "bi,tipo"}, UnknownName, "unknown strategy 'tipo'; did you mean 'topo'"),
        ({"scores": ""}, BadParameter, "name at least one score"),
        ({"scores": "bi,cosine"}, BadParameter, "names a method twice"),
        ({"scores": "bi,dense"}, BadParameter, "'dense' has no score of its own"),
        ({"scores": "bi,fuse"}, BadParameter, "'fuse' has no score of its own"),
        ({"weights": "1"}, BadParameter, "give 2 numbers > 0, one for each of bi,topo"),
        ({"weights": "1,0"}, BadParameter, "give 2 numbers > 0"),
        ({"weights": "1,many"}, BadParameter, "could not convert"),
        ({"parts": "topo.neighbours=3"}, UnknownName, "parameter of strategy 'topo'"),
        ({"parts": "tapo.k=3"}, UnknownName, "did you mean 'topo'"),
        ({"parts": "k"}, BadParameter, "wants name=value"),
        ({"parts": "topo.k=many"}, BadParameter, "topo: k=many"),
        (
            {"scores": "bi,llm_drop", "parts": "llm_drop.part=mlp"},
            BadParameter,
            "'llm_drop' removes sublayers, and only",
        ),
        ({"combine": "max"}, BadParameter, "combine=max"),
    ],
)
def test_bad_parameters_are_told_before_anything_runs(params, error, words):
    with pytest.raises(error, match=words):
        Fuse.from_params(params)


def test_members_by_alias_and_their_layers_that_must_stay(trace):
    fuse = Fuse(scores="topology,interlace", parts="topology.protect_first=2;k=7")
    assert list(fuse.members()) == ["topo", "interlace"] and fuse.members()["topo"].protect_first == 2
    plan = fuse.plan(context_of(trace, 5))
    assert plan.provenance.protected == (0, 1, 7) and plan.removed_layers == (2, 3, 4, 5, 6)
    with pytest.raises(BudgetError, match=r"only 5 of 8 may go \(protected: \[0, 1, 7\]\)"):
        fuse.plan(context_of(trace, 6))


def test_topology_greedy_is_scored_anew_on_the_layers_that_remain(trace):
    """Against a loop that hands the engine the kept layers' points at every step."""
    points = np.swapaxes(trace["points.last"], 0, 1)
    for k, alpha in itertools.product((5, 9), (0.0, 1.0)):
        gone: list[int] = []
        for _ in range(5):
            kept = [layer for layer in range(8) if layer not in gone]
            values = dict(zip(kept, topology_scores(points[kept], k=k, alpha=alpha).scores, strict=True))
            inner = [layer for layer in kept if layer not in (0, 7)]
            gone.append(max(inner, key=lambda layer: (values[layer], layer)))
        plan = Topology(k=k, alpha=alpha, select="greedy").plan(context_of(trace, 5))
        assert plan.provenance.notes["removal_order"] == gone
    everything = Topology(k=5, select="greedy", protect_first=0, protect_last=0).plan(context_of(trace, 7))
    assert len(everything.removed_layers) == 7  # down to a single layer


@pytest.mark.parametrize("rule", RULES)
def test_topology_takes_every_rule(trace, rule):
    strategy = Topology(k=7, select=rule)
    for n in range(7):
        try:
            plan = strategy.plan(context_of(trace, n))
        except BudgetError:
            assert rule in ("triplet", "spaced") and n > 2
            continue
        assert len(plan.removed_layers) == n and not {0, 7} & set(plan.removed_layers)
    with pytest.raises(BudgetError, match="7 layers asked for, but only 6 of 8 may go"):
        strategy.plan(context_of(trace, 7))
