"""The BLAS behind the products: found, called from compiled code, and left as it was."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import llvmlite.binding
import numpy as np
import pytest
import threadpoolctl

from gmkernels import blas, registry
from gmkernels.dense import matmul, spec

needs_blas = pytest.mark.skipif(blas.numpys() is None, reason="NumPy has no BLAS whose threads can be controlled")


needs_mkl = pytest.mark.skipif(not isinstance(blas.mkl(), blas.Blas), reason=str(blas.mkl()))


@needs_blas
def test_found_library_is_numpys():
    library = blas.numpys()
    before = library.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert library.get_num_threads() == 1
    assert library.get_num_threads() == before
    for address in (library.gemm_address, library.trsm_address):
        assert address(np.dtype("float32")) != address(np.dtype("float64")) != 0


def _choose(environment, code):
    """Output of a process that prints the choice of BLAS."""
    code = "from gmkernels import blas, registry\n" + code
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True).stdout


@needs_blas
def test_the_environment_keeps_numpys_library():
    code = "assert blas.find() is blas.numpys(); print(blas.describe())"
    assert "GMKERNELS_BLAS=numpy" in _choose({"GMKERNELS_BLAS": "numpy"}, code)


def test_the_environment_asks_for_what_is_there_only(monkeypatch):
    for value, found in (("openblas", "expected numpy or mkl"), ("mkl", "not installed")):
        monkeypatch.setenv("GMKERNELS_BLAS", value)
        monkeypatch.setattr(blas, "mkl", lambda: "the package mkl is not installed")
        monkeypatch.setattr(blas, "numpys", lambda: None)
        with pytest.raises(registry.KernelError, match=found):
            blas._choice.__wrapped__()


@needs_blas
def test_explain_names_the_library():
    a = np.ones((300, 300))
    assert blas.describe() in str(registry.explain(spec.MATMUL, a, a, backend="cpu"))


@needs_mkl
def test_mkl_is_chosen_where_it_is_installed():
    found = _choose({"GMKERNELS_BLAS": ""}, "print(blas.describe())")
    assert ("MKL is installed" if blas.mkl().is_narrow else "products by MKL (installed") in found
    assert "products by MKL (GMKERNELS_BLAS=mkl" in _choose({"GMKERNELS_BLAS": "mkl"}, "print(blas.describe())")


@needs_blas
@pytest.mark.parametrize("processor, name", [("znver5", "NumPy's"), ("sapphirerapids", "MKL")])
def test_mkl_is_left_where_its_vectors_are_half_as_long(processor, name, monkeypatch):
    """On AMD's processors it multiplies at half the rate of ours; and is not loaded, or PyTorch would run on it."""
    monkeypatch.delenv("GMKERNELS_BLAS", raising=False)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(blas, "_is_narrow", lambda core: core == "Haswell")
    own = replace(blas.numpys(), name="NumPy's OpenBLAS")
    loaded = []
    monkeypatch.setattr(blas, "numpys", lambda: own)
    monkeypatch.setattr(blas, "_path_of_mkl", lambda: "libmkl_rt.so")
    monkeypatch.setattr(blas, "mkl", lambda: loaded.append("MKL") or replace(own, name="MKL"))
    library, why = blas._choice.__wrapped__()
    assert library.name.startswith(name) and ("slower here" in why) == (name != "MKL")
    assert bool(loaded) == (name == "MKL")


@needs_mkl
def test_bits_of_mkl_depend_neither_on_the_memory_nor_on_threads(monkeypatch):
    pool = pytest.importorskip("gmkernels.pool")
    library = blas.mkl()
    monkeypatch.setattr(blas, "find", lambda: library)
    rng = np.random.default_rng(0)
    before = pool.get_num_threads()
    try:
        for m, k, n in ((100, 784, 500), (127, 129, 131), (16, 256, 1024)):
            a, b = rng.standard_normal((m, k), dtype="f"), rng.standard_normal((n, k), dtype="f")
            found = set()
            for offset in (0, 1, 4, 7):
                pool.set_num_threads(1 + offset % before)
                moved = [np.empty(x.size + 16, "f")[offset : offset + x.size].reshape(x.shape) for x in (a, b)]
                for x, y in zip(moved, (a, b), strict=True):
                    x[...] = y
                c = matmul(moved[0], moved[1].T, backend="cpu")
                found.add(c.tobytes())
            assert len(found) == 1
            np.testing.assert_allclose(c, a.astype(float) @ b.T.astype(float), rtol=0, atol=2e-3)
    finally:
        pool.set_num_threads(before)


@needs_blas
def test_threads_are_restored_after_nested_overlapping_and_failing_contexts(monkeypatch):
    library = blas.numpys()
    monkeypatch.setattr(blas, "find", blas.numpys)
    before = library.get_num_threads()
    with pytest.raises(ZeroDivisionError), blas.single_threaded(), blas.single_threaded():
        assert library.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert library.get_num_threads() == before

    first, second = blas.single_threaded(), blas.single_threaded()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with second:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        entered.wait()
    assert library.get_num_threads() == 1  # the other thread is still inside
    leave.set()
    thread.join()
    assert library.get_num_threads() == before


def test_the_context_does_nothing_where_no_blas_was_found(monkeypatch):
    monkeypatch.setattr(blas, "find", lambda: None)
    with blas.single_threaded():
        assert blas.single_threaded.is_entered()
    assert not blas.single_threaded.is_entered()


@needs_blas
def test_a_product_leaves_numpys_threads_as_they_were():
    library = blas.numpys()
    before = library.get_num_threads()
    try:
        for threads in {1, before}:
            library.set_num_threads(threads)
            matmul(np.ones((200, 300)), np.ones((300, 200)), backend="cpu")
            assert library.get_num_threads() == threads
    finally:
        library.set_num_threads(before)


@needs_blas
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_inside_the_context_has_its_threads_back():
    code = """
import os
from gmkernels import blas
blas.find = blas.numpys
library = blas.numpys()
library.set_num_threads(2)
with blas.single_threaded():
    child = os.fork()
    if child == 0:
        os._exit(0 if library.get_num_threads() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_products_fall_back_to_numpy_without_blas(monkeypatch):
    a, b = np.ones((300, 300)), np.ones((300, 300))
    monkeypatch.setattr(blas, "available", lambda: "has no cblas_dgemm here")
    registry._plans.clear()
    try:
        assert registry.explain(spec.MATMUL, a, b).chosen == "reference"
        assert "no cblas_dgemm" in str(registry.explain(spec.MATMUL, a, b))
        assert np.all(matmul(a, b) == 300)
        with pytest.raises(registry.KernelError, match="no cblas_dgemm"):
            matmul(a, b, backend="cpu")
    finally:
        registry._plans.clear()


def test_finding_blas_imports_no_compiler():
    code = "import sys, gmkernels.dense, gmkernels.blas as b; b.find(); assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


LAYOUTS = {
    "rows": (lambda a: a, blas.NO_TRANS, 7),
    "columns": (lambda a: np.asfortranarray(a), blas.TRANS, 5),
    "row slice": (lambda a: np.pad(a, ((0, 0), (2, 3)))[:, 2:-3], blas.NO_TRANS, 12),
    "every other row": (lambda a: np.repeat(a, 2, axis=0)[::2], blas.NO_TRANS, 14),
    "every other column": (lambda a: np.repeat(a, 2, axis=1)[:, ::2], None, None),
    "reversed": (lambda a: a[::-1].copy()[::-1], None, None),
    "broadcast": (lambda a: np.broadcast_to(a[:1], a.shape), None, None),
    "overlapping": (lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (8, 8)), None, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_read_in_place_or_packed(name):
    view, trans, leading = LAYOUTS[name]
    a = view(np.arange(35.0).reshape(5, 7))
    packed, how, lead = blas.layout(a)
    assert np.array_equal(packed, a)
    if trans is None:
        assert packed is not a and packed.flags.c_contiguous and (how, lead) == (blas.NO_TRANS, 7)
    else:
        assert packed is a and (how, lead) == (trans, leading)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (0, 3), (3, 0)])
def test_layout_of_vectors_has_a_legal_leading_dimension(shape):
    a = np.ones(shape)
    for view in (a, a.T, a[:, ::-1], np.ones((2 * shape[0], 2 * shape[1]))[::2, ::2]):
        packed, how, lead = blas.layout(view)
        assert np.array_equal(packed, view)
        assert lead >= max(1, view.shape[1] if how == blas.NO_TRANS else view.shape[0])
