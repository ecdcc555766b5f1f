"""How many threads of a GPU take part in a row or a column, for the kernels that include ``teams.cuh``.

All of it follows from shapes alone, so that results repeat bit for bit.
"""

from __future__ import annotations

BLOCK = 256
"""Threads of a block, as in ``teams.cuh``."""
THREADS = 1 << 18
"""About as many as the largest devices hold at once."""
_SHORTEST = 8
"""Elements or rows, times the width, that a thread goes through before it is worth another one."""
_WARP = 32


def wide(length: int, itemsize: int) -> tuple[int, str]:
    """How many neighbouring elements of rows of some length a thread reads at once, and what such kernels are called.

    Parameters
    ----------
    length : of rows that follow each other in memory.
    itemsize : bytes of an element.

    Returns
    -------
    The elements of 128 bits and ``"wide"`` if a row is a whole number of those, otherwise 1 and ``"1"``.
    """
    width = 16 // itemsize
    return (width, "wide") if length % width == 0 else (1, "1")


def lanes(length: int, each: int, most: int = BLOCK) -> int:
    """Threads that share a row: a power of two, such that each has `each` elements or fewer, if `most` allows that.

    Parameters
    ----------
    length : of the row, or of a piece of it.
    each : elements.
    most : a power of two.
    """
    return min(most, 1 << max(0, -(-length // each) - 1).bit_length())


def lanes_of(length: int, width: int) -> int:
    """`lanes` of a row that is read once, in groups of `width`."""
    return lanes(length, _SHORTEST * width)


def of_rows(rows: int, lanes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The grid and the block of a launch with so many threads for each row.

    Parameters
    ----------
    rows : rows, or pieces of rows.
    lanes : threads for each; more than a warp are a block of their own.
    """
    block = BLOCK if lanes <= _WARP else lanes
    return (-(-rows * lanes // block),), (block,)


def of_columns(groups: int, length: int, pieces: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The grid and the block of a launch in which threads run along columns, and how many rows each goes through.

    Parameters
    ----------
    groups : columns, or groups of neighbouring columns that a thread takes together.
    length : rows of a piece.
    pieces : into how many pieces the rows are cut.

    Returns
    -------
    (blocks, pieces); (threads along the groups, threads that share a group); rows of each of these.
    """
    wanted = min(
        length // _SHORTEST, THREADS // max(1, groups * pieces), max(_SHORTEST, BLOCK // max(1, groups)), _WARP
    )
    along = 1 << max(1, wanted).bit_length() - 1
    across = BLOCK // along
    return (-(-groups // across), pieces), (across, along), -(-length // along)
