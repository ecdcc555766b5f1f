"""Arrays cross by DLPack, both ways, without a copy."""

import numpy as np
import pytest

import gmcore
from gmcore import from_dlpack, tensor
from gmcore.errors import ArgumentError, DtypeError, GraphError

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", [lambda a: a, lambda a: a.T, lambda a: a[::2, 1:], lambda a: a[:0], lambda a: a[1, 1]]
)
def test_numpy_both_ways_is_the_same_memory(dtype, layout):
    a = layout((np.arange(12).reshape(4, 3) % 5).astype(dtype)[...])
    a = np.asarray(a)
    t = from_dlpack(a)
    assert (t.dtype, t.shape) == (a.dtype, a.shape) and (np.shares_memory(t.numpy(), a) or not a.size)
    back = np.from_dlpack(t)
    assert (np.shares_memory(back, a) or not a.size) and not back.flags.writeable
    np.testing.assert_array_equal(back, a)
    assert t.__dlpack_device__() == a.__dlpack_device__() and t.version == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_both_ways_is_the_same_memory(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    t = from_dlpack(theirs)
    assert t.dtype == dtype and t._data.ctypes.data == theirs.data_ptr()
    back = torch.from_dlpack(t)
    assert back.data_ptr() == theirs.data_ptr() and back.dtype == theirs.dtype and torch.equal(back, theirs)


def test_writing_is_asked_for_and_counted():
    torch = pytest.importorskip("torch")
    x = tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    torch.from_dlpack(x.detach().numpy(writable=True))[0] = 5.0
    assert x.tolist() == [5.0, 2.0]
    with pytest.raises(GraphError, match="changed after it was recorded"):
        y.backward()


def test_a_copy_is_apart():
    a = np.array([1.0, 2.0])
    from_dlpack(a, copy=True).copy_([5.0, 5.0])
    t = tensor(a)
    np.from_dlpack(t, copy=True)[0] = 7.0
    assert a.tolist() == t.tolist() == [1.0, 2.0]


def test_a_tensor_on_the_tape_is_not_handed_out():
    torch = pytest.importorskip("torch")
    x = tensor([1.0], requires_grad=True)
    for t in (x, x * 2.0):
        with pytest.raises(GraphError, match=r"\.detach\(\)"):
            t.__dlpack__()
    with pytest.raises(GraphError, match="from_dlpack: Tensor does not share its memory"):
        from_dlpack(torch.ones(1, requires_grad=True))


def test_a_library_that_does_not_know_read_only_memory_is_refused():
    with pytest.raises(BufferError, match="readonly"):
        tensor([1.0]).__dlpack__()


def test_errors():
    with pytest.raises(ArgumentError, match="expected an array with __dlpack__, got list"):
        from_dlpack([1.0])
    with pytest.raises(ArgumentError, match="device 'gpu'; expected"):
        from_dlpack(np.ones(1), device="gpu")
    for dtype in ("complex64", "U1"):
        with pytest.raises(DtypeError, match="from_dlpack: cannot make a tensor of dtype"):
            from_dlpack(np.ones(1).astype(dtype))


def test_bfloat16_is_refused_by_name():
    """NumPy, through whose DLPack all arrays come, knows no bfloat16."""
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    for x in (torch.ones(2, dtype=torch.bfloat16), np.ones(2, ml_dtypes.bfloat16)):
        with pytest.raises(DtypeError, match=f"from_dlpack: .*bfloat16.* \\(called at {__file__}"):
            from_dlpack(x)


def test_what_is_computed_from_it_has_a_gradient():
    x = from_dlpack(np.array([2.0, 3.0])).requires_grad_()
    assert gmcore.grad((x * x).sum(), x).tolist() == [4.0, 6.0]
