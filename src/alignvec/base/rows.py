"""Strengths of rows, laid out for the outputs of modules."""

from __future__ import annotations

import torch

from alignvec.errors import AlignvecError


def per_row(strengths: torch.Tensor, output: torch.Tensor, may_widen: bool = False) -> torch.Tensor:
    """[R, C] -> [rows, 1, ..., C] for an output [rows, ..., width].

    A module may see the tokens of all rows one after another: each row is then as many neighbours.

    Args:
        may_widen: an output of one row may become as many as there are strengths: positions are
            embedded once for the whole batch.

    Raises:
        AlignvecError: the rows are no multiple of the strengths.
    """
    rows, wanted = len(strengths), len(output)
    if rows not in (1, wanted) and not (may_widen and wanted == 1):
        if wanted % rows:
            raise AlignvecError(f"{rows} settings for a batch of {wanted}")
        strengths = strengths.repeat_interleave(wanted // rows, 0)
    return strengths.view(len(strengths), *(1,) * (output.ndim - 2), strengths.shape[1])
