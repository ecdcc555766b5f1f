"""Calls that repeat the launches of an earlier one; `test_specs` compares those of every kernel with its Python."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest

from gmkernels import pool, registry
from gmkernels.dense import matmul
from gmkernels.optim import adam, sgd
from gmkernels.pool import block_kernel
from gmkernels.replay import Replay


@block_kernel
def _scaled(block, x, factor, table, y, per_block):
    """y = factor x + table[0], and counts its blocks in the table."""
    for i in range(block * per_block, min((block + 1) * per_block, y.size)):
        y[i] = factor[0] * x[i] + table[0]
    table[1] += 1


PER_BLOCK = 8


class Scale:
    """A kernel that counts its calls, and does something else before or after its launch."""

    def __init__(self, before=lambda x, y: None, after=lambda x, y: None):
        self.calls = 0
        self.before, self.after = before, after

    def __call__(self, inputs, outputs, workspace, attrs):
        self.calls += 1
        (x,), (y,) = inputs, outputs
        self.before(x, y)
        table = np.array([3, 0])
        _scaled(-(-y.size // PER_BLOCK), x, np.array([attrs["factor"]]), table, y, PER_BLOCK)
        self.after(x, y)


def results(kernel, calls=4, size=5):
    """y of calls on arrays that all stay alive, and 2 x + 3."""
    replay = Replay(kernel, updates=False)
    xs = [np.arange(float(size)) + 10 * i for i in range(calls)]
    ys = [np.empty(size) for _ in xs]
    for x, y in zip(xs, ys, strict=True):
        replay((x,), (y,), (), {"factor": 2.0})
    return np.array(ys), 2 * np.array(xs) + 3


def test_the_python_of_a_kernel_runs_in_the_first_call_and_a_rehearsal():
    kernel = Scale()
    found, expected = results(kernel)
    np.testing.assert_array_equal(found, expected)
    assert kernel.calls == 2


@pytest.mark.parametrize(
    "kernel",
    [
        Scale(before=lambda x, y: y.fill(0)),
        Scale(after=lambda x, y: np.add(y, 0, out=y)),
        Scale(after=lambda x, y: y.__setitem__(0, y[0])),
    ],
)
def test_a_kernel_that_computes_with_numpy_is_called_each_time(kernel):
    found, expected = results(kernel)
    np.testing.assert_array_equal(found, expected)
    assert kernel.calls == 1 + 4


def test_a_kernel_that_launches_nothing_is_called_each_time():
    kernel = Scale()
    results(kernel, size=0)
    assert kernel.calls == 1 + 4


def test_an_array_that_the_kernel_may_have_to_pack_is_not_repeated():
    kernel, x = Scale(), np.arange(10.0)
    replay = Replay(lambda i, *rest: kernel([np.ascontiguousarray(i[0])], *rest), updates=False)
    for i in range(4):
        y = np.empty(5)
        replay((x[i % 2 :: 2],), (y,), (), {"factor": 2.0})
        np.testing.assert_array_equal(y, 2 * x[i % 2 :: 2] + 3)
    assert kernel.calls == 4


def test_launches_that_are_watched_are_those_of_the_kernel():
    kernel = Scale()
    replay = Replay(kernel, updates=False)
    x, seen = np.arange(5.0), []

    def watcher(launch):
        seen.append(launch)
        return nullcontext()

    for _ in range(3):
        replay((x,), (np.empty(5),), (), {"factor": 2.0})
    with pool.watched(watcher):
        replay((x,), (y := np.empty(5),), (), {"factor": 2.0})
    assert [launch.kernel for launch in seen] == [_scaled] and seen[0].arguments[0] is x
    np.testing.assert_array_equal(y, 2 * x + 3)


def test_a_rehearsal_launches_nothing():
    y = np.zeros(5)
    with pool.rehearsal() as launches:
        _scaled(1, np.ones(5), np.ones(1), np.array([3, 0]), y, PER_BLOCK)
    assert not y.any() and [launch.blocks for launch in launches] == [1]
    assert not pool.is_watched()


def test_two_threads_repeat_at_once():
    """Each with numbers of its own: what they share is not written."""
    size = 40 * PER_BLOCK
    replay = Replay(Scale(), updates=False)
    replay((np.ones(size),), (np.empty(size),), (), {"factor": 2.0})
    wrong = []

    def work(value):
        x = np.full(size, value)
        for _ in range(200):
            y = np.empty(size)
            replay((x,), (y,), (), {"factor": 2.0})
            if not np.all(y == 2 * value + 3):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_may_be_one_in_one_call_and_two_in_the_next():
    a, b = np.random.default_rng(0).standard_normal((2, 6, 6))
    for x, y in ((a, a), (a, a), (a, b), (b, a), (a.T, a), (a.T, a), (a.T, b), (b.T, a.T), (b.T, a.T)):
        np.testing.assert_allclose(matmul(x, y, backend="cpu"), x @ y, rtol=0, atol=1e-13)


def test_an_update_of_other_outputs_is_another_call():
    """Its inputs do not tell: a state that is too short, or read-only, is refused as in the first call."""
    grads = [np.ones(3), np.ones(2)]

    def update(state, params=None):
        adam(params or [np.zeros(3), np.zeros(2)], grads, state, [np.zeros(3), np.zeros(2)], step=1, backend="cpu")

    for _ in range(3):
        update([np.zeros(3), np.zeros(2)])
    with pytest.raises(registry.KernelError, match=r"exp_avg\[1\]"):
        update([np.zeros(3), np.zeros(1)])
    frozen = [np.zeros(3), np.zeros(2)]
    frozen[1].flags.writeable = False
    with pytest.raises(registry.KernelError, match=r"params\[1\]"):
        update([np.zeros(3), np.zeros(2)], frozen)
    p = [np.zeros(3), np.zeros(2)]
    for i in range(3):  # without momentum a parameter takes the place of its state
        sgd(p, grads, lr=1.0, step=1 + i, backend="cpu")
        assert np.all(p[0] == -1 - i) and np.all(p[1] == -1 - i)
