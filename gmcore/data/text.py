"""Text: any UTF-8 file as a sequence of the numbers of its characters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcore.data.dataset import SPLITS
from gmcore.data.readers import read_bytes
from gmcore.errors import DataError

Codes = NDArray[np.int32]


class Vocabulary:
    """Characters and their numbers: a character's number is its place in `characters`.

    Parameters
    ----------
    characters : the characters, each once.

    Raises
    ------
    DataError
        If there are none, or one of them comes twice.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._numbers = {character: number for number, character in enumerate(characters)}
        if not characters or len(self._numbers) < len(characters):
            raise DataError(f"a vocabulary has each of its characters once, and at least one; got {characters!r}")

    def __len__(self) -> int:
        return len(self.characters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def encode(self, text: str) -> Codes:
        """The numbers of the characters of `text`, int32 of shape (len(text),).

        Raises
        ------
        DataError
            If a character is not in the vocabulary, with its place.
        """
        try:
            return np.fromiter((self._numbers[character] for character in text), np.int32, len(text))
        except KeyError as error:
            (character,) = error.args
            raise DataError(
                f"the character {character!r} at {text.index(character)} of the text is none of the "
                f"{len(self)} of the vocabulary: {self.characters!r}"
            ) from None

    def decode(self, codes: Iterable[int]) -> str:
        """The text of numbers, the inverse of `encode`. Raises `DataError` for a number that is no character's."""
        codes = list(codes)
        for code in codes:
            if not 0 <= code < len(self):
                raise DataError(f"{code} is the number of no character: these are from 0 to {len(self) - 1}")
        return "".join(self.characters[code] for code in codes)


@dataclass(frozen=True, eq=False)
class Text:
    """A text in three parts, as numbers of characters.

    Attributes
    ----------
    name : str
    train, valid, test : int32 arrays of shape (characters,)
    vocabulary : Vocabulary
        Of all three.
    provenance : dict
        As in `gmcore.data.Dataset`.

    Raises
    ------
    DataError
        If a split is empty.
    """

    name: str
    train: Codes = field(repr=False)
    valid: Codes = field(repr=False)
    test: Codes = field(repr=False)
    vocabulary: Vocabulary
    provenance: dict[str, Any] = field(default_factory=dict)
    image_shape: None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not getattr(self, split).size:
                raise DataError(f"text {self.name!r}, split {split!r}: empty")

    @property
    def features(self) -> int:
        """Number of characters of the vocabulary."""
        return len(self.vocabulary)

    def fingerprint(self) -> str:
        """Digest of the contents of all splits."""
        digest = hashlib.sha256(self.vocabulary.characters.encode())
        for split in SPLITS:
            digest.update(getattr(self, split).tobytes())
        return digest.hexdigest()


def read_text(path: str | os.PathLike[str], name: str | None = None) -> Text:
    """Read a UTF-8 file as text, its first 90 % for training, the next 5 % for validation, the rest for testing.

    Parameters
    ----------
    path : path
        Of the file, gzipped or not.
    name : str, optional
        The file's name without its ending if left out.

    Returns
    -------
    Text
        Every character as it is in the file, line ends included; the vocabulary is sorted.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, is not UTF-8 (with the byte where that ends), or is too short to
        have three parts.
    """
    path = Path(path)
    contents = read_bytes(path)
    try:
        text = contents.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8: byte {error.start} is 0x{contents[error.start]:02x} ({error.reason})"
        ) from None
    if len(text) < 20:
        raise DataError(f"{path}: expected at least 20 characters to split 90/5/5, found {len(text)}")
    vocabulary = Vocabulary("".join(sorted(set(text))))
    codes = vocabulary.encode(text)
    train, valid = len(text) * 90 // 100, len(text) * 95 // 100
    split = f"in order: the first {train} characters train, the next {valid - train} valid, the rest test"
    return Text(name or path.stem, codes[:train], codes[train:valid], codes[valid:], vocabulary, {"split": split})
