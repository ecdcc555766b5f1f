"""Workspaces that blocks share: the first free one, and no two blocks in one."""

import numpy as np

from gmkernels import pool
from gmkernels.pool import block_kernel
from gmkernels.slots import claim, release


@block_kernel
def _take(block, taken, found, inside):
    slot = claim(taken)
    found[block] = slot
    inside[slot] += 1
    for i in range(1, 2000):  # long enough to be interrupted
        inside[slot] += i % 2 * 2 - 1
    if inside[slot] != 2:
        found[block] = -1
    inside[slot] = 0
    release(taken, slot)


def test_blocks_have_the_first_free_workspace_to_themselves() -> None:
    threads, blocks = pool.get_num_threads(), 500
    for limit in {1, threads}:
        pool.set_num_threads(limit)
        try:
            taken, found, inside = (np.zeros(blocks, np.int64) for _ in range(3))
            taken[0] = 1  # not theirs
            _take(blocks, taken, found, inside)
        finally:
            pool.set_num_threads(threads)
        assert set(found) <= set(range(1, limit + 1)) and taken.sum() == 1
