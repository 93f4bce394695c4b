"""Registers the methods of this package; each lives in a file of its own."""

from __future__ import annotations

from prunebench.hookspecs import hookimpl


@hookimpl
def prunebench_register_strategies(register):
    from prunebench_baselines.angular import Angular
    from prunebench_baselines.bi import BlockInfluence
    from prunebench_baselines.blockpruner import BlockPruner
    from prunebench_baselines.controls import Dense, EvenSpacing, FirstN, LastN, LastNKeepFinal, MiddleN, Random
    from prunebench_baselines.domain_aware import DomainAware
    from prunebench_baselines.finercut import FinerCut
    from prunebench_baselines.fuse import Fuse
    from prunebench_baselines.interlace import Interlace
    from prunebench_baselines.laco import LaCo
    from prunebench_baselines.llm_drop import LLMDrop
    from prunebench_baselines.llm_pruner import LLMPruner
    from prunebench_baselines.llm_streamline import LLMStreamline
    from prunebench_baselines.magnitude import Magnitude
    from prunebench_baselines.mka import MKA
    from prunebench_baselines.oracle_loo import LeaveOneOut
    from prunebench_baselines.owl import OWL
    from prunebench_baselines.replaceme import ReplaceMe
    from prunebench_baselines.short_lvlm import ShortLVLM
    from prunebench_baselines.shortened_magnitude import ShortenedMagnitude
    from prunebench_baselines.shortened_ppl import ShortenedPPL
    from prunebench_baselines.shortened_taylor import ShortenedTaylor
    from prunebench_baselines.sleb import SLEB
    from prunebench_baselines.sparsegpt import SparseGPT
    from prunebench_baselines.tamp import TAMP
    from prunebench_baselines.wanda import Wanda

    for control in (Dense, Random, FirstN, LastN, LastNKeepFinal, MiddleN, EvenSpacing):
        register(control)
    for similarity in (BlockInfluence, Angular, LLMStreamline, DomainAware, Interlace, LLMDrop, Fuse):
        register(similarity)
    for compensated in (ShortLVLM, ReplaceMe):
        register(compensated)
    for loss_driven in (ShortenedPPL, ShortenedTaylor, SLEB, BlockPruner, FinerCut, LaCo, MKA):
        register(loss_driven)
    for reference in (ShortenedMagnitude, LeaveOneOut):
        register(reference)
    for layerwise in (Magnitude, Wanda, SparseGPT, OWL, TAMP):
        register(layerwise)
    register(LLMPruner)
