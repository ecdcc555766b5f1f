"""Pictures of a run: grids of images and learning curves, as PNG files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gmcore.errors import ShapeError
from gmcore.extras import require
from gmcore.io import write_atomically

if TYPE_CHECKING:
    from gmcore.models.base import Model

_SIDE = 56
"""Images are enlarged, by a whole factor, to about this many pixels a side: 8x8 digits can be read then."""

_GAP = 4


def require_matplotlib() -> None:
    """Raise `GmcoreError` with the command that installs it, unless pictures can be drawn."""
    require("matplotlib", "drawing pictures")


def mosaic(
    images: np.ndarray, image_shape: tuple[int, int], columns: int, value_range: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """Images in rows, enlarged, as one grey picture.

    Parameters
    ----------
    images : (n, height * width), filled into rows of `columns` images.
    value_range : the values shown black and white; what lies outside is clipped.

    Returns
    -------
    (rows, columns) uint8 array of pixels.

    Raises
    ------
    ShapeError : images that are not of `image_shape`, or none.
    """
    height, width = image_shape
    if images.ndim != 2 or images.shape[1] != height * width or len(images) == 0:
        raise ShapeError(f"expected images of shape (n, {height} * {width}) with n >= 1, got {images.shape}")
    factor = max(1, round(_SIDE / max(height, width)))
    low, high = value_range
    grey = np.clip((images - low) / ((high - low) or 1.0), 0.0, 1.0) * 255.0
    tiles = grey.astype(np.uint8).reshape(-1, height, width).repeat(factor, axis=1).repeat(factor, axis=2)
    rows = math.ceil(len(tiles) / columns)
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    picture = np.full((rows * cell_height + _GAP, columns * cell_width + _GAP), 64, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * cell_height + _GAP, i % columns * cell_width + _GAP
        picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return picture


def save_samples(
    path: str | os.PathLike[str],
    images: np.ndarray,
    image_shape: tuple[int, int],
    value_range: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write images, (n, height * width), as a grid that is about square."""
    _save_grey(path, mosaic(images, image_shape, math.ceil(math.sqrt(len(images))), value_range))


def save_reconstructions(
    path: str | os.PathLike[str],
    originals: np.ndarray,
    reconstructions: np.ndarray,
    image_shape: tuple[int, int],
    value_range: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write rows of originals, each above the row of their reconstructions; both (n, height * width)."""
    columns = 10
    rows = [
        part[start : start + columns]
        for start in range(0, len(originals) - columns + 1, columns)
        for part in (originals, reconstructions)
    ] or [originals, reconstructions]
    _save_grey(path, mosaic(np.concatenate(rows), image_shape, min(columns, len(originals)), value_range))


def save_filters(path: str | os.PathLike[str], filters: np.ndarray, image_shape: tuple[int, int]) -> None:
    """Write at most 100 filters, (n, height * width), with 0 as the middle grey."""
    filters = filters[:100]
    limit = float(np.quantile(abs(filters), 0.995))
    save_samples(path, filters, image_shape, (-limit, limit))


def save_rows(
    path: str | os.PathLike[str],
    images: np.ndarray,
    image_shape: tuple[int, int],
    value_range: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write images, (rows, columns, height * width), as they are arranged."""
    rows, columns, size = images.shape
    _save_grey(path, mosaic(images.reshape(rows * columns, size), image_shape, columns, value_range))


def _save_grey(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    image = require("matplotlib.image", "drawing pictures")
    content = io.BytesIO()
    image.imsave(content, picture, cmap="gray", vmin=0, vmax=255, format="png")
    write_atomically(path, content.getvalue())


def save_curves(path: str | os.PathLike[str], metrics: Sequence[Mapping[str, Any]], model: Model) -> None:
    """Write the figures of training and validation over the epochs, and of the test with its baseline.

    Parameters
    ----------
    metrics : the lines of a run's ``metrics.jsonl``.
    model : says what its figures are called, and their unit.
    """
    figure = require("matplotlib.figure", "drawing pictures").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = [line for line in metrics if "train_loss" in line]
    x = [line["epoch"] for line in epochs]
    # A lone point draws no line.
    marker = "o" if len(x) == 1 else None
    axes.plot(x, [-line["train_loss"] for line in epochs], label=f"training {model.training_figure}", marker=marker)
    axes.plot(x, [line["valid_bound"] for line in epochs], label=f"validation {model.validation_figure}", marker=marker)
    tests = [line for line in metrics if line.get("split") == "test"]
    if tests:
        last = tests[-1]
        axes.axhline(last["bound"], color="black", label=f"test {model.test_figure}")
        if last["baseline"] is not None:
            axes.axhline(last["baseline"], color="gray", linestyle=":", label="baseline, test")
    axes.set_xlabel("epoch")
    axes.set_ylabel(model.unit)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


__all__ = [
    "mosaic",
    "require_matplotlib",
    "save_curves",
    "save_filters",
    "save_reconstructions",
    "save_rows",
    "save_samples",
]
