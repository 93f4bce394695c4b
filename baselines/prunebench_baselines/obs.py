"""Optimal brain surgery on a linear module: zero some weights of a row, and let the others make up for it.

With H = Σ x xᵀ over a module's inputs, the weights of a row that stay make up best for one that goes by
δw = −w_j / [H⁻¹]_jj · [H⁻¹]_j: (Hassibi & Stork). SparseGPT (Frantar & Alistarh, arXiv 2301.00774) goes through the
columns from the left and lets only those to the right of a column make up for it. Then all rows share one sequence of
inverses, and the upper Cholesky factor U of H⁻¹ = UᵀU holds them all: of the inverse of H without its first j columns
and rows, the first row is U_jj · U_j:, and its first number U_jj².
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench_baselines.thinning import lowest_of_all, lowest_of_groups, portion

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["inverse_factor", "prune_columns"]


def inverse_factor(hessian: Tensor, damping: float) -> Tensor | None:
    """Upper triangular U with UᵀU = (H + damping · mean(diag H) · I)⁻¹; None where that is not positive definite.

    Args:
        hessian: (columns, columns), symmetric; it is not changed. A column without input (H_jj = 0) counts as one of
            its own, H_jj = 1, and not in the mean.
        damping: share of the mean diagonal.
    """
    import torch

    diagonal = hessian.diagonal()
    alive = diagonal != 0
    added = damping * diagonal[alive].mean() if bool(alive.any()) else diagonal.new_zeros(())
    # H = V Vᵀ with V upper triangular, from the Cholesky factor of H with its order turned round; then U = V⁻¹. One
    # factorisation and no inverse of H, which is where float32 would lose most. Each of these matrices may take
    # gigabytes, so none is kept for longer than it is needed.
    turned = hessian.flip(0, 1)
    turned.diagonal().add_(torch.where(alive, added, added + 1).flip(0))
    turned, failed = torch.linalg.cholesky_ex(turned)
    if bool(failed) or not bool(torch.isfinite(turned).all()):
        return None
    turned = turned.flip(0, 1)
    eye = torch.eye(len(turned), dtype=turned.dtype, device=turned.device)
    factor = torch.linalg.solve_triangular(turned, eye, upper=True)
    return factor if bool(torch.isfinite(factor).all()) else None


def prune_columns(
    weight: Tensor, factor: Tensor, *, share: float, groups: tuple[int, int] | None = None, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """The weights that stay, changed to make up for those that go, and which stay.

    In each block of columns the ⌊rows · columns · share⌋ weights with the lowest w² / U_jj² go, with w as the blocks
    before have left it; ties go row after row. With `groups` the lowest of each row's groups of neighbours go instead,
    chosen when the group's first column is reached.

    Args:
        weight: (rows, columns), in the arithmetic that is wanted; it is not changed.
        factor: (columns, columns), of `inverse_factor`.
        share: of the weights that go; not read with `groups`.
        groups: (N, M): at most N of M neighbours stay; M divides the columns and the block size.
        block_size: columns per block.

    Returns:
        (rows, columns) new weights, zero where they went, and (rows, columns) bool, True where they stay.
    """
    import torch

    weight = weight.clone()
    gone = torch.zeros_like(weight, dtype=torch.bool)
    scale, columns = factor.diagonal(), weight.shape[1]
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        block, out = weight[:, start:stop], gone[:, start:stop]  # views
        if groups is None:
            (lowest,) = lowest_of_all([(block / scale[start:stop]).abs()], portion(block.numel(), share))
            out.copy_(lowest)
        errors = torch.zeros_like(block)
        for here in range(stop - start):
            column = start + here
            if groups is not None and here % groups[1] == 0:
                window = slice(here, here + groups[1])
                scores = (block[:, window] / scale[start:stop][window]).abs()
                out[:, window] = lowest_of_groups(scores, *groups)
            errors[:, here] = torch.where(out[:, here], block[:, here] / scale[column], 0)
            if here + 1 < stop - start:
                block[:, here + 1 :].addr_(errors[:, here], factor[column, column + 1 : stop], alpha=-1)
        if stop < columns:
            weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return weight.masked_fill_(gone, 0), ~gone
