"""What stands between an ordinary machine and ``import lmms_eval``."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any

from prunebench.errors import EvaluationError, MissingExtra, first_line

__all__ = ["COMMAND", "need_lmms_eval", "not_installed", "repair_torchvision"]

COMMAND = "make lmms (or, beside a CUDA build of torch, pip install 'prunebench[lmms]')"
"""A plain ``pip install lmms-eval`` on a machine without CUDA would replace torch by a build of several GB."""

KERNELS = ("nms", "qnms")
"""Operators that torchvision declares things about while it is imported; its compiled part would define them."""

_kept: list[Any] = []  # a library's definitions go with it


def not_installed() -> MissingExtra:
    """The error of a machine without lmms-eval."""
    return MissingExtra("lmms-eval", "lmms", "the evaluator 'lmms'", command=COMMAND)


def need_lmms_eval() -> None:
    """Make sure that lmms-eval can be imported. Nothing of it is imported here.

    Raises:
        MissingExtra: it is not installed.
        EvaluationError: a torchvision is, that cannot be imported beside this torch.
    """
    if find_spec("lmms_eval") is None:
        raise not_installed()
    repair_torchvision()


def repair_torchvision() -> bool:
    """Let a torchvision whose compiled part does not load beside a CPU torch be imported all the same.

    Its transforms work then, its own kernels (`KERNELS`) do not: nothing here uses them. Without this, transformers
    takes torchvision for available, and everything that reads images fails.

    Returns:
        Whether anything had to be done.

    Raises:
        EvaluationError: it cannot be imported even so.
    """
    if "torchvision" in sys.modules or find_spec("torchvision") is None:
        return False
    import torch

    if torch.version.cuda is not None:
        return False
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise _broken(error) from error
    except (ImportError, OSError) as error:
        raise _broken(error) from error
    _forget()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in KERNELS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever else its import runs into
        raise _broken(error) from error
    return True


def _broken(error: BaseException) -> EvaluationError:
    return EvaluationError(
        f"torchvision does not import beside this torch ({first_line(error)}): pip uninstall -y torchvision"
    )


def _forget() -> None:
    """A failed import leaves modules behind that know half of it."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
