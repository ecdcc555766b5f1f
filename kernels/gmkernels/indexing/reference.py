"""The look-up of rows by number and their sum by number, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.arrays import namespace, on_gpu
from gmkernels.indexing.spec import check_index

Arrays = Sequence[np.ndarray]


def gather_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    table, index = inputs
    check_index("gather_rows", index, len(table))
    outputs[0][...] = table[index]


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    x, index = inputs
    check_index("scatter_add_rows", index, attrs["rows"])
    outputs[0].fill(0)
    add_at(outputs[0], index.reshape(-1), x.reshape(index.size, *outputs[0].shape[1:]))


def add_at(out: np.ndarray, index: np.ndarray, rows: np.ndarray) -> None:
    """out[index[i]] += rows[i], one after the other, also where an index is repeated.

    On a GPU, where atomic additions would come in any order, all indices for the first time, then for the second, ...
    """
    if not on_gpu(out):
        np.add.at(out, index, rows)
    elif rows.size:
        index = index % len(out)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        turn = namespace(out).arange(index.size) - np.searchsorted(ordered, ordered)
        order = order[np.argsort(turn, kind="stable")]
        start = 0
        for stop in np.cumsum(np.bincount(turn)).tolist():
            part = order[start:stop]
            out[index[part]] += rows[part]
            start = stop
