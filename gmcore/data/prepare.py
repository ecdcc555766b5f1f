"""The rows of a data set as training and evaluation see them, and the minibatches of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gmcore.data.binarize import batches, binarize
from gmcore.data.dataset import Dataset
from gmcore.streams import stream_seed
from gmkernels import rng


def _uniform(seed: int, draw: int, start: int, count: int) -> np.ndarray:
    return rng.uniform((count,), key=(seed, draw, start))


def prepare(dataset: Dataset, split: str, mode: str, seed: int, epoch: int = 1) -> np.ndarray:
    """The rows of a split as training or evaluation sees them, (n, features) float32.

    Binarised by `mode` with the split's stream of the run's `seed`. Dynamic binarisation changes the training
    rows by epoch; validation and test rows are binarised once.
    """
    rows = getattr(dataset, split)
    if mode == "none":
        return rows
    mode = mode if split == "train" else "static"
    key = stream_seed(seed, f"binarize-{split}")
    return binarize(rows, np.arange(len(rows)), seed=key, epoch=epoch, mode=mode, uniform=_uniform)


def is_binary(rows: np.ndarray) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((rows == 0) | (rows == 1)))


class Minibatches(Sequence[np.ndarray]):
    """The batches of an epoch in their order, each taken from `rows` when it is asked for."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
        self._rows = rows
        self._order = list(batches(len(rows), batch_size, seed, epoch))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # slices are not wanted
        return self._rows[self._order[index]]
