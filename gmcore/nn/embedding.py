"""A table of vectors, looked up by number."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.nn import init
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.op import user_line
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed


def _check_rows(index: np.ndarray, rows: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < rows):
        raise ArgumentError(
            f"Embedding: expected integers from 0 to {rows - 1}, got {index.min()} to {index.max()} "
            f"(called at {user_line()})"
        )


class Embedding(Module):
    """The rows of `weight` that integers name: (...) -> (..., embedding_dim).

    Parameters
    ----------
    num_embeddings, embedding_dim : number and length of the rows, at least 1.
    padding_idx : a row that is zeros at first and gets no gradient; counted from the end if negative.
    max_norm, scale_grad_by_freq, sparse : only as None, False and False.
    norm_type : of max_norm, so it means nothing here.
    device : ``"cpu"`` (the default).
    dtype : floating; float32 by default.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim), drawn from N(0, 1).

    Raises
    ------
    ArgumentError : sizes below 1, a padding_idx that is no row, or an argument that is not supported.
    DtypeError, ArgumentError : (called) input that is not integers, or not from 0 to num_embeddings - 1.

    Notes
    -----
    The gradient of a row is the sum over its places in the input: `ops.scatter_add`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.num_embeddings = positive_integer("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = positive_integer("Embedding", "embedding_dim", embedding_dim)
        if max_norm is not None:
            raise ArgumentError(
                f"Embedding: max_norm={max_norm!r} is not supported: it would change weights in forward"
            )
        if scale_grad_by_freq:
            raise ArgumentError("Embedding: scale_grad_by_freq=True is not supported: it is not the gradient")
        if sparse:
            raise ArgumentError("Embedding: sparse=True is not supported; gradients are dense")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ArgumentError(f"Embedding: padding_idx {padding_idx} is none of {num_embeddings} rows")
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.weight = Parameter(put(np.empty((self.num_embeddings, self.embedding_dim), floating(dtype)), device))
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weight from N(0, 1), and set the padding row to 0. Takes one draw of the generator."""
        init.normal_(self.weight, generator=generator)
        if self.padding_idx is not None:
            rows = self.weight.detach().cpu().numpy().copy()
            rows[self.padding_idx] = 0.0
            self.weight.copy_(rows)

    @classmethod
    def from_pretrained(
        cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None, **kwargs: Any
    ) -> Self:
        """A table with a copy of the rows `embeddings` (n, d), not trained unless ``freeze=False``."""
        rows = as_tensor(embeddings)
        if rows.ndim != 2:
            raise ShapeError(f"Embedding.from_pretrained: expected embeddings (n, d), got {rows.shape}")
        made = cls(rows.shape[0], rows.shape[1], padding_idx, **{"dtype": rows.dtype, **kwargs})
        made.weight = Parameter(rows, requires_grad=not freeze)
        return made

    def forward(self, input: Any) -> Tensor:
        index = as_tensor(input)
        if index.dtype.kind not in "iu":
            raise DtypeError(f"Embedding: expected integers, got {index.dtype} (called at {user_line()})")
        computed(_check_rows, index._data, rows=self.num_embeddings)
        rows = ops.getitem(self.weight, index)
        if self.padding_idx is None:
            return rows
        return ops.where(ops.expand_dims(ops.equal(index, self.padding_idx), -1), rows.detach(), rows)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
