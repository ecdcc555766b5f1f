"""Where data sets are found, how they are downloaded and verified, and what is said where they are not."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from gmcore.data import Dataset, File, Source, cache_dir, load, register, sources
from gmcore.data.sources import _SOURCES
from gmcore.errors import ArgumentError, DataError, UnknownNameError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
CONTENTS = ROWS.tobytes()
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


def build(paths) -> Dataset:
    contents = paths["all"].read_bytes()
    rows = np.frombuffer(gzip.decompress(contents) if contents[:2] == b"\x1f\x8b" else contents, np.float32)
    return Dataset("toy-set", *[rows.reshape(-1, 3)] * 3, provenance={"split": "three times the same"})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; the registry is put back afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GMCORE_DATA", raising=False)
    for name in list(_SOURCES):
        monkeypatch.setitem(_SOURCES, name, _SOURCES[name])
    yield tmp_path / "cache" / "gmcore" / "data"
    _SOURCES.pop("toy-set", None)


def register_toy(*, sha256: tuple[str, ...] = (SHA256,), url: str | None = None) -> None:
    """As a package outside the tree would."""
    files = {"all": File(("toy.bin", "toy.bin.gz"), sha256, url)}
    register(Source("toy-set", "a set of four rows", build, files, ("Toys/raw",)))


def put(folder: Path, name: str = "toy.bin", contents: bytes = CONTENTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)
    return folder / name


@pytest.mark.parametrize("folder", [".", "toy-set", "toy_set", "Toys/raw"])
@pytest.mark.parametrize("where", ["data_dir", "GMCORE_DATA", "cache"])
def test_found_in_root_or_own_folder(cache: Path, tmp_path: Path, monkeypatch, where: str, folder: str) -> None:
    register_toy()
    root = cache if where == "cache" else tmp_path / "root"
    put(root / folder)
    if where == "GMCORE_DATA":
        monkeypatch.setenv("GMCORE_DATA", str(root))
    dataset = load("toy-set", root if where == "data_dir" else None, download=False)
    np.testing.assert_array_equal(dataset.train, ROWS)


def test_search_order(cache: Path, tmp_path: Path, monkeypatch) -> None:
    register_toy(sha256=())
    monkeypatch.setenv("GMCORE_DATA", str(tmp_path / "environment"))
    places = [
        tmp_path / "given" / "toy-set",
        tmp_path / "given",
        tmp_path / "environment",
        cache / "toy-set",
    ]
    for number, place in enumerate(places):
        put(place, "toy.bin.gz", (ROWS + 100 + number).tobytes())
        put(place, "toy.bin", (ROWS + number).tobytes())
    for number, place in enumerate(places):
        assert load("toy-set", tmp_path / "given").train[0, 0] == number
        (place / "toy.bin").unlink()
        assert load("toy-set", tmp_path / "given").train[0, 0] == 100 + number
        (place / "toy.bin.gz").unlink()


@pytest.mark.parametrize("name", ["toy-set", "toy_set", "Toy-Set", " TOY SET "])
def test_variants_of_a_name(cache: Path, name: str) -> None:
    register_toy()
    put(cache / "toy-set")
    assert load(name).name == "toy-set"


def test_provenance_is_json_and_complete(cache: Path) -> None:
    register_toy()
    put(cache / "toy-set")
    assert json.loads(json.dumps(load("toy-set").provenance)) == {
        "data": "toy-set",
        "files": {"toy.bin": {"sha256": SHA256, "verified": True}},
        "split": "three times the same",
        "sizes": {"train": 4, "valid": 4, "test": 4},
        "range": [0.0, 11.0],
    }


def test_compressed_anew_is_verified_and_changed_is_not(cache: Path) -> None:
    register_toy()
    contents = gzip.compress(CONTENTS, 3)
    put(cache / "toy-set", "toy.bin.gz", contents)
    files = load("toy-set").provenance["files"]
    assert files == {"toy.bin.gz": {"sha256": hashlib.sha256(contents).hexdigest(), "verified": True}}
    changed = (ROWS + 1).tobytes()
    put(cache / "toy-set", "toy.bin", changed)
    with pytest.warns(UserWarning, match="toy.bin: its sha256 .* is of no published file of 'toy-set'"):
        dataset = load("toy-set")
    assert dataset.provenance["files"]["toy.bin"]["verified"] is False
    np.testing.assert_array_equal(dataset.train, ROWS + 1)


def test_files_of_another_set_are_refused(cache: Path) -> None:
    register_toy()
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"):
        put(cache / "mnist", name)
    with pytest.raises(DataError, match="train-images.*expected data of 'mnist', found the file of 'toy-set'"):
        load("mnist")


def test_unknown_name_suggests_the_nearest(cache: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fashion-mnist'"):
        load("fasion_mnist")


def test_missing_files_say_where_and_what(cache: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GMCORE_DATA", str(tmp_path / "environment"))
    put(tmp_path / "mnist", "t10k-images-idx3-ubyte")
    with pytest.raises(DataError) as error:
        load("mnist", tmp_path, download=False)
    text = str(error.value)
    assert "\n" not in text
    for expected in (
        "train-images-idx3-ubyte.gz",
        "MNIST/raw",
        f"{tmp_path / 'mnist'} lacks train-images-idx3-ubyte.gz",
        str(tmp_path / "environment"),
        str(cache / "mnist"),
        "switched off",
        "--data-dir",
        "GMCORE_DATA",
    ):
        assert expected in text
    with pytest.raises(DataError, match="chardata.mat or chardata_rebuilt.mat.*no download that could be verified"):
        load("omniglot")
    with pytest.raises(DataError, match="absent is not a folder"):
        load("mnist", tmp_path / "absent")


def test_download_is_verified_and_kept(cache: Path, tmp_path: Path) -> None:
    origin = put(tmp_path / "origin")
    register_toy(url=origin.as_uri())
    with pytest.raises(DataError, match="switched off"):
        load("toy-set", download=False)
    assert load("toy-set").provenance["files"]["toy.bin"]["verified"]
    origin.unlink()
    np.testing.assert_array_equal(load("toy-set").train, ROWS)  # now from the cache
    assert [path.name for path in (cache / "toy-set").iterdir()] == ["toy.bin"]


def test_wrong_download_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    origin = put(tmp_path / "origin", contents=b"<html>sign in</html>")
    register_toy(url=origin.as_uri())
    with pytest.raises(DataError, match=f"gave 20 bytes of sha256 .*, expected {SHA256}.*Put the files into"):
        load("toy-set")
    assert list((cache / "toy-set").iterdir()) == []


def test_failed_download_says_what_to_do(cache: Path, tmp_path: Path, monkeypatch) -> None:
    register_toy(url=(tmp_path / "nowhere").as_uri())
    with pytest.raises(DataError, match="downloading .*nowhere failed.*Put the files into"):
        load("toy-set")
    put(cache / "..", "data2")  # the cache cannot be made where a file is in its way
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / ".." / "data2"))
    with pytest.raises(DataError, match="Not a directory.*Put the files into"):
        load("toy-set")


def test_interrupted_download_leaves_nothing(cache: Path, monkeypatch) -> None:
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read(self, size: int) -> bytes:
            if hasattr(self, "begun"):
                raise URLError("connection lost")
            self.begun = True
            return CONTENTS[:20]

    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url) or Response())
    with pytest.raises(DataError, match="connection lost"):
        load("fashion-mnist")
    assert asked == ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz"]
    assert list((cache / "fashion-mnist").iterdir()) == []


def test_register_refuses_taken_and_ill_formed_names(cache: Path) -> None:
    register_toy()
    assert list(sources()) == sorted(sources()) and "toy-set" in sources()
    for name in ("toy-set", "mnist", "My_Set"):
        with pytest.raises(ArgumentError, match=name):
            register(Source(name, "", build, {}))
    with pytest.raises(ArgumentError, match="sha256"):
        File(("a",), url="https://example.org/a")


def test_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for platform, folder in {"linux": ".cache", "darwin": "Library/Caches", "win32": "AppData/Local"}.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_dir() == Path.home() / folder / "gmcore" / "data"


def test_import_loads_no_optional_or_slow_package() -> None:
    program = (
        "import sys, gmcore; before = set(sys.modules); import gmcore.data; "
        "print(sorted({'scipy', 'sklearn', 'urllib.request'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
