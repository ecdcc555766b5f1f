"""What optimisers do to many arrays at once, against PyTorch, and what they refuse."""

import math

import cupy
import numpy as np
import pytest

from gmkernels import KernelError, pool, run
from gmkernels.optim import adadelta, adagrad, adam, average, rmsprop, sgd, spec, total_norm
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

BACKENDS = ("reference", "cpu")
SHAPES = [(), (0,), (1,), (127, 129), (20011,), (2, 3, 5)]

# Kernel, PyTorch's optimiser, number of states, whether it counts steps, options.
CASES = [
    (sgd, "SGD", 1, True, {}),
    (sgd, "SGD", 1, True, {"momentum": 0.9}),
    (sgd, "SGD", 1, True, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01, "maximize": True}),
    (sgd, "SGD", 1, True, {"momentum": 0.8, "nesterov": True}),
    (adam, "Adam", 3, True, {}),
    (adam, "Adam", 3, True, {"betas": (0.5, 0.99), "eps": 1e-4, "weight_decay": 0.03, "maximize": True}),
    (adam, "Adam", 3, True, {"amsgrad": True, "weight_decay": 0.03, "decoupled_weight_decay": True}),
    (adagrad, "Adagrad", 1, True, {"lr_decay": 0.1, "weight_decay": 0.01}),
    (rmsprop, "RMSprop", 3, False, {"weight_decay": 0.01}),
    (rmsprop, "RMSprop", 3, False, {"centered": True, "momentum": 0.9, "eps": 1e-3}),
    (adadelta, "Adadelta", 2, False, {"weight_decay": 0.01, "maximize": True}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel, name, states, counts, options", CASES)
def test_updates_equal_pytorch(kernel, name, states, counts, options, backend, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    params = [np.array(rng.standard_normal(s), dtype) for s in SHAPES]
    state = [[np.zeros_like(p) for p in params] for _ in range(states)]
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    peer = getattr(torch.optim, name)(theirs, lr=1e-2, **options)
    for step in range(1, 11):
        grads = [np.array(rng.standard_normal(s) + 0.1, dtype) for s in SHAPES]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        peer.step()
        kernel(params, grads, *state, lr=1e-2, **({"step": step} if counts else {}), backend=backend, **options)
    # 10 steps of at most 0.1 round at most 10 times, a root of a small mean of squares a few times more.
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=0, atol=3e-14 if dtype == "float64" else 3e-6)
        assert p.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_that_are_not_used_are_left_alone(backend):
    def nan():
        return [np.full(3, np.nan)]

    p, g, buffer = [np.ones(3)], [np.full(3, 2.0)], nan()
    sgd(p, g, buffer, lr=0.5, step=1, backend=backend)
    assert np.all(p[0] == 0) and np.all(np.isnan(buffer[0]))
    sgd(p, g, buffer, lr=0.5, momentum=0.9, step=1, backend=backend)
    assert np.all(p[0] == -1) and np.all(buffer[0] == 2)
    zeros = [np.zeros(3)]
    for states in ((nan(), nan()), (None, None)):
        q = [np.ones(3)]
        rmsprop(q, g, [np.zeros(3)], *states, lr=0.1, alpha=0.75, eps=0, backend=backend)
        np.testing.assert_allclose(q[0], 0.8, rtol=1e-15)
    r = [np.ones(3)]
    adam(r, g, zeros, [np.zeros(3)], lr=0.1, eps=0, step=1, backend=backend)
    np.testing.assert_allclose(r[0], 0.9, rtol=1e-15)


@pytest.mark.parametrize(
    ("update", "hyper", "numbers"),
    [
        (spec.ADAM, (1e-3, 0.9, 0.999, 1e-8, 0, 0, 0, 0, 1), 7),
        (spec.ADAM, (1e-3, 0.9, 0.999, 1e-8, 0, 0, 1, 0, 1), 9),
        (spec.RMSPROP, (1e-2, 0.99, 1e-8, 0, 0, 0, 0), 5),
        (spec.RMSPROP, (1e-2, 0.99, 1e-8, 0, 0.9, 1, 0), 9),
        (spec.SGD, (1e-2, 0, 0, 0, 0, 0, 1), 3),
        (spec.AVERAGE, (0.999,), 3),
    ],
)
def test_only_states_that_are_used_are_work(update, hyper, numbers):
    arrays = (np.ones((5, 3), np.float32), np.ones(7, np.float32))
    assert update.cost(arrays, np.array(hyper, np.float64)).bytes == numbers * 4 * 22


def test_states_that_are_used_must_be_given():
    ones = [np.ones(3)]
    with pytest.raises(KernelError, match="momentum_buffer is needed"):
        sgd(ones, ones, momentum=0.9, step=1)
    with pytest.raises(KernelError, match="max_exp_avg_sq is needed"):
        adam(ones, ones, ones, ones, amsgrad=True, step=1)
    with pytest.raises(KernelError, match="grad_avg is needed"):
        rmsprop(ones, ones, ones, centered=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_refuse_what_they_cannot_update(backend):
    def step(p, g, m=None):
        zeros = [np.zeros(a.shape, a.dtype) for a in g]
        adam(p, g, zeros if m is None else m, zeros, zeros, step=1, backend=backend)

    good = np.ones((4, 3))
    read_only = np.ones((4, 3))
    read_only.flags.writeable = False
    for bad in (good.T, good[:, :2], np.ones((4, 6))[:, ::2], np.ones((4, 3), "f"), read_only):
        with pytest.raises(KernelError, match=r"adam.*params\[1\]"):
            step([np.ones(2), bad], [np.ones(2), good])
    with pytest.raises(KernelError, match=r"adam.*2 arrays in \*params, got 1"):
        step([good], [good, good])
    with pytest.raises(KernelError, match=r"exp_avg\[0\]"):
        step([good], [good], [np.ones(3)])
    with pytest.raises(KernelError, match="one floating dtype, got float32, float64"):
        step([np.ones(2, "f"), np.ones(2)], [np.ones(2, "f"), np.ones(2)])
    with pytest.raises(KernelError, match=r"expected hyper float64\[9\] \(lr, beta1"):
        run(spec.ADAM, ((good,), np.ones(5)), outputs=((good,), (good,), (good,), (good,)), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_gradients_are_read_where_they_are(backend):
    grad = np.arange(12.0).reshape(3, 4)
    p, q = [np.ones((4, 3))], [np.ones((4, 3))]
    sgd(p, [grad.T], lr=0.1, step=1, backend=backend)
    sgd(q, [grad.T.copy()], lr=0.1, step=1, backend=backend)
    np.testing.assert_array_equal(p[0], q[0])
    assert total_norm([grad.T], backend=backend) == pytest.approx(math.sqrt(506), rel=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_parameters(backend):
    for kernel, _, states, counts, options in CASES:
        params, grads = [np.ones(3)], [np.array([1.0, np.nan, 1.0])]
        state = [[np.zeros(3)] for _ in range(states)]
        kernel(params, grads, *state, **({"step": 1} if counts else {}), backend=backend, **options)
        np.testing.assert_array_equal(np.isnan(params[0]), [False, True, False])


@pytest.mark.parametrize("backend", BACKENDS)
def test_centered_rmsprop_of_a_constant_gradient_stays_finite(backend):
    """The variance of a constant tends to 0, and rounds below it: its root must not be NaN."""
    params, states = [np.zeros(5, "f")], [[np.zeros(5, "f")] for _ in range(3)]
    g = [np.linspace(0.1, 3.0, 5, dtype="f")]
    for _ in range(2000):
        rmsprop(params, g, *states, alpha=0.9, eps=1e-3, centered=True, backend=backend)
    assert np.isfinite(params[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_average(backend):
    a, p = [np.zeros(3), np.full(2, 4.0)], [np.ones(3), np.zeros(2)]
    average(a, p, decay=0.75, backend=backend)
    average(a, p, decay=0.75, backend=backend)
    np.testing.assert_allclose(a[0], 1 - 0.75**2, rtol=1e-15)
    np.testing.assert_allclose(a[1], 4 * 0.75**2, rtol=1e-15)


@pytest.mark.parametrize("decay", [-0.1, 1.5, math.nan])
def test_average_refuses_other_decays(decay):
    a = [np.ones(3)]
    with pytest.raises(KernelError, match=rf"average: expected a decay in \[0, 1\], got {decay}"):
        average(a, [np.zeros(3)], decay=decay)
    assert a[0].tolist() == [1.0] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_total_norm_at_infinity_and_nan_and_of_nothing(backend):
    for norm_type in (1.0, 2.0, 3.5, math.inf):
        assert total_norm([], norm_type=norm_type, backend=backend) == 0
        assert total_norm([np.zeros(0), np.zeros(2)], norm_type=norm_type, backend=backend) == 0
        assert total_norm([np.ones(3), np.array([-np.inf])], norm_type=norm_type, backend=backend) == np.inf
        for grads in ([np.array([np.nan]), np.full(20000, np.inf)], [np.full(20000, 7.0), np.array([1, np.nan, 9.0])]):
            assert np.isnan(total_norm(grads, norm_type=norm_type, backend=backend))
    big = [np.full(3, 3e38, np.float32)]  # its square is no float32
    assert total_norm(big, backend=backend) == pytest.approx(math.sqrt(3) * float(big[0][0]), rel=1e-15)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(KernelError, match="norm_type must be a positive number"):
            total_norm(big, norm_type=bad, backend=backend)


def test_chunks_cover_every_element_once():
    sizes = (5, 0, spec.CHUNK, spec.CHUNK + 1, 1, 3 * spec.CHUNK - 1)
    rows, first = spec.chunks(sizes)
    for i, size in enumerate(sizes):
        covered = [k for array, start, count in rows if array == i for k in range(start, start + count)]
        assert covered == list(range(size))
    assert first[0] == 0 and first[-1] == len(rows) and all(a < b for a, b in zip(first, first[1:], strict=False))
    assert all(rows[a:b, 2].sum() <= spec.CHUNK for a, b in zip(first, first[1:], strict=False))


def test_threads_do_not_matter_to_many_blocks():
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(s, dtype="f") for s in ((300, 257), (411, 257), (411,))]

    def everything():
        arrays = [[np.zeros_like(g) for g in grads] for _ in range(3)]
        adam(arrays[0], grads, *arrays[1:], step=1, backend="cpu")
        return [a for some in arrays for a in some] + [np.asarray(total_norm(grads, backend="cpu"))]

    threads = pool.get_num_threads()
    expected = everything()
    try:
        pool.set_num_threads(1)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(everything(), expected, strict=True))
    finally:
        pool.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------
# Tables of many arrays, of CUDA C
# ---------------------------------------------------------------------------------------------------------


def scattered(rng, sizes):
    """Arrays one after another in memory of a GPU, at any multiple of their element's size, and that memory."""
    memory = cupy.asarray(rng.random(sum(sizes) + 1, np.float32) + 1)
    ends = np.cumsum([1, *sizes])
    return tuple(memory[start:end] for start, end in zip(ends, ends[1:])), memory


@pytest.mark.parametrize("updated, arrays", [(spec.SGD, 3), (spec.ADAM, 5)])
def test_many_arrays_of_odd_sizes_and_places_in_few_launches(updated, arrays):
    """200 arrays, more than one table names; the last has several blocks, of which the last is not full."""
    rng = np.random.default_rng(3)
    sizes = [*rng.integers(0, 20, 199), 9001]
    (given, _), *changed = (scattered(rng, sizes) for _ in range(arrays))
    numbers = {"sgd": (0.1, 0.9, 0.3, 1, 0.01, 0, 2), "adam": (0.1, 0.9, 0.99, 1e-6, 0.1, 0, 1, 0, 3)}
    hyper = np.array(numbers[updated.name])
    outputs = tuple(group for group, _ in changed)
    on_host = tuple(tuple(a.get() for a in group) for group in outputs)
    run(updated, (tuple(a.get() for a in given), hyper), outputs=on_host, backend="reference")
    ends = [memory[:1].get() for _, memory in changed]
    hyper_there = cupy.asarray(hyper)
    with cuda_stand_in.counting() as counts:
        run(updated, (given, hyper_there), outputs=outputs, backend="cuda")
    if not has_gpu():
        assert counts["launch"] == -(-sum(size > 0 for size in sizes) // (4072 // (8 * arrays + 12)))
    for group, expected, (_, memory), end in zip(outputs, on_host, changed, ends, strict=True):
        np.testing.assert_allclose(
            np.concatenate([a.get() for a in group]), np.concatenate(expected), rtol=updated.tolerance["float32"][0]
        )
        np.testing.assert_array_equal(memory[:1].get(), end)


def test_a_captured_update_reads_new_numbers():
    given, p = (cupy.ones(5, np.float32),), (cupy.zeros(5, np.float32),)
    hyper = cupy.asarray(np.array([0.5, 0, 0, 0, 0, 0, 1.0]))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        run(spec.SGD, (given, hyper), outputs=(p, p), backend="cuda")
        graph = stream.end_capture()
        graph.launch()
        hyper[0] = 2.0
        graph.launch()
    stream.synchronize()
    np.testing.assert_array_equal(p[0].get(), -2.5)


def test_norm_of_more_arrays_than_a_table_names():
    rng = np.random.default_rng(4)
    grads = [rng.standard_normal(n).astype(np.float32) for n in rng.integers(0, 9, 230)]
    there = [cupy.asarray(g) for g in grads]
    for norm_type in (2.0, math.inf):
        expected = np.linalg.norm(np.concatenate(grads).astype(np.float64), norm_type)
        assert total_norm(there, norm_type=norm_type, backend="cuda").get() == pytest.approx(expected, rel=1e-12)
    next(g for g in there if g.size)[0] = np.nan
    assert np.isnan(total_norm(there, norm_type=math.inf, backend="cuda").get())
