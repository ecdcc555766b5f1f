"""The registry of data sets: where their files are looked for, downloaded to, and turned into splits."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gmcore.data.dataset import SPLITS, Dataset
from gmcore.data.own import own_arrays
from gmcore.data.readers import read_bytes
from gmcore.data.text import Text, read_text
from gmcore.errors import ArgumentError, DataError, unknown_name


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes
    ----------
    names : tuple of str
        The file names it is found under; the first is the original's, and a download's.
    sha256 : tuple of str
        Hex digests of the published file, as published or decompressed. Without any, nothing is verified.
    url : str or None
        Where the published file can be had. It needs a digest: nothing is downloaded unverified.
    """

    names: tuple[str, ...]
    sha256: tuple[str, ...] = ()
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url and not self.sha256:
            raise ArgumentError(f"{self.names[0]}: a file with a url needs the sha256 of what it serves")


@dataclass(frozen=True)
class Source:
    """How a data set is made from its files; `register` makes it known to `load`.

    Attributes
    ----------
    name : str
        Lower case, words joined by dashes.
    summary : str
        One line for lists.
    build : callable
        ``build(paths)`` gives a `Dataset` or a `Text`, where ``paths[key]`` is the path of ``files[key]``. Its
        provenance needs only ``split``, a sentence on how the splits were made.
    files : mapping of str to File
    folders : tuple of str
        Sub-folders of a root of data sets in which the files may lie, besides one of the set's name.
    """

    name: str
    summary: str
    build: Callable[[Mapping[str, Path]], Dataset | Text]
    files: Mapping[str, File]
    folders: tuple[str, ...] = ()


_SOURCES: dict[str, Source] = {}


def register(source: Source) -> None:
    """Make a data set known by name to `load`; packages outside gmcore add theirs so.

    Raises
    ------
    ArgumentError
        If the name is taken, or not in the form that names are compared in.
    """
    if source.name != _canonical(source.name) or source.name in _SOURCES:
        raise ArgumentError(f"the data set name {source.name!r} is taken, or not lower case with dashes")
    _SOURCES[source.name] = source


def sources() -> dict[str, Source]:
    """The registered data sets by name, sorted."""
    return dict(sorted(_SOURCES.items()))


def cache_dir() -> Path:
    """The folder that data sets are downloaded to, each into one of its name.

    ``gmcore/data`` in `XDG_CACHE_HOME` where that is set, and otherwise in the platform's cache folder.
    """
    folder = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}.get(sys.platform, "~/.cache")
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or folder), "gmcore", "data")


def load(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset | Text:
    """Read a data set by name, or a file of one's own by path: `.npy`, `.npz`, or any UTF-8 text.

    The files of a named set are looked for in `data_dir`, then in the environment variable `GMCORE_DATA`,
    then in `cache_dir`; each may be a root of data sets or the set's own folder. Where they are nowhere,
    and published at a known address with a known sha256, they are downloaded into the cache.

    Parameters
    ----------
    name_or_path : str or path
        A name of `sources`, in any case, with dashes or underscores; or a path that ends in ``.npy`` or
        ``.npz``, as `own_arrays` reads it; or that of any other file, as `read_text` reads it.
    data_dir : path, optional
    download : bool
        Whether missing files may be downloaded.

    Returns
    -------
    Dataset or Text

    Raises
    ------
    DataError
        If the files are missing, with the places searched and what to do; if a file cannot be read, or
        holds another data set; if `data_dir` is not a folder.
    UnknownNameError
        If the name is not registered.

    Warns
    -----
    UserWarning
        If a file is well formed but its sha256 is not that of the published one; provenance records it too.
    """
    path = Path(name_or_path)
    name = _canonical(str(name_or_path))
    arrays = path.suffix.lower() in (".npy", ".npz")
    dataset: Dataset | Text
    files: dict[str, dict[str, str | bool | None]]
    if arrays or (name not in _SOURCES and path.is_file()):
        dataset = own_arrays(path) if arrays else read_text(path)
        files = {path.name: {"sha256": _sha256(path), "verified": None}}
    else:
        if name not in _SOURCES:
            raise unknown_name("data set", str(name_or_path), [*_SOURCES, "a path to .npy, .npz or a text file"])
        source = _SOURCES[name]
        paths = _find(source, data_dir, download) if source.files else {}
        files = {path.name: _identify(source, source.files[key], path) for key, path in paths.items()}
        dataset = source.build(paths)
    splits = [getattr(dataset, split) for split in SPLITS]
    provenance = {
        "data": dataset.name,
        "files": files,
        **dataset.provenance,
        "sizes": {split: len(part) for split, part in zip(SPLITS, splits, strict=True)},
    }
    if isinstance(dataset, Dataset):
        provenance["range"] = [min(float(part.min()) for part in splits), max(float(part.max()) for part in splits)]
    return replace(dataset, provenance=provenance)


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _find(source: Source, data_dir: str | os.PathLike[str] | None, download: bool) -> dict[str, Path]:
    """The path of each file of the source, all from one folder, downloaded if need be."""
    if data_dir is not None and not os.path.isdir(os.path.expanduser(data_dir)):
        raise DataError(f"data set {source.name!r}: the data folder {data_dir} is not a folder")
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("GMCORE_DATA")) if root]
    incomplete = ""
    for root in [*roots, cache_dir()]:
        for folder in _folders(source, root):
            paths = {
                key: folder / name
                for key, file in source.files.items()
                for name in reversed(file.names)  # the first name that exists is the last to be set
                if os.path.isfile(folder / name)
            }
            if len(paths) == len(source.files):
                return paths
            if paths:
                absent = [file.names[0] for key, file in source.files.items() if key not in paths]
                incomplete += f"; {folder} lacks {', '.join(absent)}"
    home = cache_dir() / source.name
    if not all(file.url for file in source.files.values()):
        reason = "there is no download that could be verified"
    elif not download:
        reason = "downloading is switched off"
    else:
        try:
            return {key: _download(file, home) for key, file in source.files.items()}
        except DataError as error:
            reason = str(error)
    raise DataError(
        f"data set {source.name!r} needs {', '.join(' or '.join(f.names) for f in source.files.values())}; "
        f"not all found in one of the folders {', '.join(map(str, _folders(source, Path('.'))))} "
        f"of {', '.join(map(str, [*roots, cache_dir()]))}{incomplete}; {reason}. "
        f"Put the files into {home}, or name their folder with data_dir (--data-dir) or GMCORE_DATA."
    )


def _folders(source: Source, root: Path) -> Iterator[Path]:
    """Where a source's files may lie under a root, the root itself last: it may be of another set."""
    for folder in dict.fromkeys((source.name, source.name.replace("-", "_"), *source.folders)):
        yield root / folder
    yield root


def _download(file: File, folder: Path) -> Path:
    """Download into the folder, by way of a temporary file, so that the file is whole and verified or absent."""
    from http.client import HTTPException  # here, since these load as slowly as the rest of the package
    from urllib.request import urlopen

    target = folder / file.names[0]
    if target.is_file():
        return target
    assert file.url is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            part = Path(temporary, target.name)
            with urlopen(file.url, timeout=30) as response, open(part, "wb") as out:
                shutil.copyfileobj(response, out)
            if (digest := _sha256(part)) not in file.sha256:
                raise DataError(
                    f"{file.url} gave {part.stat().st_size} bytes of sha256 {digest}, "
                    f"expected {' or '.join(file.sha256)}"
                )
            os.replace(part, target)
    except (OSError, HTTPException) as error:
        raise DataError(f"downloading {file.url} failed ({error})") from None
    return target


def _identify(source: Source, file: File, path: Path) -> dict[str, str | bool | None]:
    """What provenance records of a file; refuse another data set's, warn of one of unknown contents."""
    digests = {digest := _sha256(path)}
    if file.sha256 and digest not in file.sha256:
        digests.add(hashlib.sha256(read_bytes(path)).hexdigest())  # perhaps only compressed anew
    for other in _SOURCES.values():
        if other is not source and any(digests.intersection(f.sha256) for f in other.files.values()):
            raise DataError(f"{path}: expected data of {source.name!r}, found the file of {other.name!r}")
    verified = not digests.isdisjoint(file.sha256) if file.sha256 else None
    if verified is False:
        warnings.warn(
            f"{path}: its sha256 {digest} is of no published file of {source.name!r}; "
            "results on other data are not comparable with published ones",
            stacklevel=4,
        )
    return {"sha256": digest, "verified": verified}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
