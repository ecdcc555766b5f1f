"""Files of arrays: exact, whole or not at all, and never silently damaged."""

import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gmcore import io, tensor
from gmcore.errors import CheckpointError, GraphError

DTYPES = ("bool", "int8", "int64", "uint64", "float16", "float32", "float64", ">f8")
# Of one to four bytes, with those that JSON escapes: all characters would do as well, if Hypothesis did not take
# seconds to list them.
CHARACTERS = "".join(map(chr, (*range(0x180), *range(0x300, 0x310), *range(0x2020, 0x2030), *range(0xFFF0, 0x10010))))
CHARACTERS += "\u4e00\ud7ff\ue000\ufeff\U0001f600\U0010ffff"
ARRAYS = st.dictionaries(
    st.text(CHARACTERS, min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)
STRINGS = st.dictionaries(st.text(CHARACTERS, max_size=8), st.text(CHARACTERS, max_size=20), max_size=3)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in shape, and in every bit up to byte order (NaN payloads included)."""
    a, b = (x.astype(x.dtype.newbyteorder("<")) for x in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "arrays.safetensors"
    io.save(path, {"weight": np.arange(6.0).reshape(2, 3), "step": np.array(7)}, {"model": "vae"})
    return path


@settings(max_examples=40)
@given(arrays=ARRAYS, metadata=STRINGS)
def test_round_trip(tmp_path_factory, arrays, metadata):
    path = tmp_path_factory.mktemp("io") / "a.safetensors"
    io.save(path, arrays, metadata)
    found, strings = io.load(path)
    assert found.keys() == arrays.keys()
    assert all(same(found[name], arrays[name]) for name in arrays)
    reserved = {"gmcore_format", "sha256"}
    assert {k: v for k, v in strings.items() if k not in reserved} == {
        k: v for k, v in metadata.items() if k not in reserved
    }


def test_layouts_are_saved_by_value(tmp_path):
    x = np.arange(24.0).reshape(4, 6)
    views = {"fortran": np.asfortranarray(x), "strided": x[::2, ::-1], "broadcast": np.broadcast_to(x[0], (3, 6))}
    io.save(tmp_path / "a", views, {})
    found, _ = io.load(tmp_path / "a")
    assert all(same(found[name], np.ascontiguousarray(view)) for name, view in views.items())


def test_every_truncation_is_noticed(saved):
    content = saved.read_bytes()
    for size in range(len(content)):
        saved.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=saved.name):
            io.load(saved)


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_every_changed_bit_is_noticed(saved, bit):
    content = saved.read_bytes()
    arrays, metadata = io.load(saved)
    for i in range(len(content)):
        saved.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
        try:
            found, strings = io.load(saved)
        except CheckpointError:
            continue
        # What still loads is whitespace that changed into other whitespace, or a file without our mark,
        # which `gmcore.load` refuses.
        assert "gmcore_format" not in strings or (
            strings == metadata and all(same(found[name], arrays[name]) for name in arrays)
        )


def test_another_format_version_is_refused_by_number(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(io, "FORMAT_VERSION", 99)
        io.save(tmp_path / "a", {}, {})
    with pytest.raises(CheckpointError, match="format 99; this gmcore reads format 1"):
        io.load(tmp_path / "a")


def test_missing_and_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            io.load(path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        io.save(tmp_path / "no folder" / "a", {}, {})


def test_files_of_other_libraries_load(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    safetensors.save_file({"w": torch.arange(4.0)}, tmp_path / "a")
    arrays, metadata = io.load(tmp_path / "a")
    assert metadata.keys().isdisjoint({"gmcore_format"})
    assert same(arrays["w"], np.arange(4, dtype=np.float32))
    io.save(tmp_path / "b", arrays, {})
    assert torch.equal(safetensors.load_file(tmp_path / "b")["w"], torch.arange(4.0))
    safetensors.save_file({"w": torch.ones(2).to(torch.float8_e5m2)}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="dtype that NumPy lacks"):
        io.load(tmp_path / "c")


def test_bfloat16_of_other_libraries_loads(tmp_path):
    pytest.importorskip("ml_dtypes")
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    safetensors.save_file({"w": torch.arange(4).to(torch.bfloat16)}, tmp_path / "a")
    w = io.load(tmp_path / "a")[0]["w"]
    assert w.dtype.name == "bfloat16"
    assert w.astype(np.float64).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_failed_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch, call, error):
    content = saved.read_bytes()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            io.save(saved, {"weight": np.zeros(3)}, {})
    if isinstance(error, OSError):
        assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [saved.name]


def test_file_size_limit(saved):
    """A write that the system itself refuses, half way through."""
    resource = pytest.importorskip("resource")
    content = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            io.save(saved, {"weight": np.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [saved.name]


def test_file_has_the_usual_permissions(saved):
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_tensors_are_saved_as_arrays_but_not_off_their_tape(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    io.save(tmp_path / "a", {"t": tensor(x), "view": tensor(x).T, "one": tensor(3)})
    found, _ = io.load(tmp_path / "a")
    assert same(found["t"], x) and same(found["view"], np.ascontiguousarray(x.T)) and found["one"].shape == ()
    with pytest.raises(GraphError, match=r"\.detach\(\)"):
        io.save(tmp_path / "a", {"t": tensor(x, requires_grad=True)})


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"a": np.array([1, "x"], object)}, {}, "cannot hold 'a' of object"),
        ({"a": np.array(["x"])}, {}, "cannot hold 'a' of <U1"),
        ({"a": np.zeros(2, "m8")}, {}, "cannot hold 'a' of timedelta64"),
        ({"__metadata__": np.zeros(2)}, {}, "cannot hold '__metadata__' of float64"),
        ({1: np.zeros(2)}, {}, "names and metadata must be strings"),
        ({"a": np.zeros(2)}, {"k": 3}, "names and metadata must be strings"),
        ({"a": np.zeros(2)}, {"k": "\ud800"}, "names and metadata must be strings"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(saved, arrays, metadata, message):
    before = saved.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        io.save(saved, arrays, metadata)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_links_are_followed_and_pipes_are_left(saved):
    link, pipe = saved.with_name("link"), saved.with_name("pipe")
    link.symlink_to(saved)
    io.save(link, {"a": np.zeros(2)})
    assert link.is_symlink() and list(io.load(saved)[0]) == ["a"]
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="pipe: cannot be written .a device or a pipe"):
        io.save(pipe, {"a": np.zeros(2)})
    assert pipe.is_fifo()
