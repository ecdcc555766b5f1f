"""Text files: what is read, how it is split, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmcore.data import Text, Vocabulary, load, read_text
from gmcore.errors import DataError, UnknownNameError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


# Of one to four bytes, with controls, marks that combine, ends of ranges: all characters would do as
# well, if Hypothesis did not take seconds to list them.
CHARACTERS = "".join(map(chr, (*range(0x180), *range(0x300, 0x310), *range(0x2020, 0x2030), *range(0xFFF0, 0x10010))))
CHARACTERS += "\u4e00\ud7ff\ue000\ufeff\U0001f600\U0010ffff"


@given(st.text(CHARACTERS, min_size=1, max_size=40))
def test_a_vocabulary_numbers_characters_and_names_them_again(text):
    vocabulary = Vocabulary("".join(sorted(set(text))))
    codes = vocabulary.encode(text)
    assert codes.dtype == np.int32 and vocabulary.decode(codes) == text
    assert sorted(set(codes.tolist())) == list(range(len(vocabulary)))


def test_what_is_not_in_a_vocabulary():
    with pytest.raises(DataError, match="the character 'z' at 3 of the text is none of the 2 of the vocabulary: 'ab'"):
        Vocabulary("ab").encode("abazz")
    for characters in ("", "aba"):
        with pytest.raises(DataError, match="each of its characters once, and at least one"):
            Vocabulary(characters)
    for code in (-1, 2):
        with pytest.raises(DataError, match=f"{code} is the number of no character: these are from 0 to 1"):
            Vocabulary("ab").decode([0, code])


def test_a_file_is_split_in_order(tmp_path):
    text = "".join(chr(0x3B1 + i % 24) for i in range(200)) + "\r\n\n"  # Greek, of two bytes each; line ends stay
    path = tmp_path / "greek.txt"
    path.write_bytes(text.encode())
    for found in (load(path), load(str(path)), read_text(path, "greek")):
        assert isinstance(found, Text) and found.name == "greek" and found.image_shape is None
        parts = [found.train, found.valid, found.test]
        assert [len(part) for part in parts] == [182, 10, 11]
        assert "".join(map(found.vocabulary.decode, parts)) == text
        assert found.features == len(found.vocabulary) == 26
        assert found.vocabulary.characters == "".join(sorted(set(text)))
    provenance = load(path).provenance
    assert provenance["sizes"] == {"train": 182, "valid": 10, "test": 11} and "range" not in provenance
    assert provenance["files"]["greek.txt"]["verified"] is None and "first 182 characters" in provenance["split"]
    zipped = tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(text.encode()))
    assert load(zipped).fingerprint() == load(path).fingerprint()
    path.write_text(text[:-1] + "\r", newline="")
    assert load(path).fingerprint() != load(zipped).fingerprint()


def test_refused_files(tmp_path):
    path = tmp_path / "a.txt"
    for contents, match in (
        (b"", "a.txt: the file is empty"),
        (b"plain text \xc3\xa4 and then \xff\xfe", r"a.txt: not UTF-8: byte 23 is 0xff \(invalid start byte\)"),
        ("ä".encode()[:1], r"a.txt: not UTF-8: byte 0 is 0xc3 \(unexpected end of data\)"),
        (b"nineteen characters", "expected at least 20 characters to split 90/5/5, found 19"),
    ):
        path.write_bytes(contents)
        with pytest.raises(DataError, match=match):
            load(path)
    path.write_bytes(b"twenty characters   ")
    assert len(load(path).test) == 1
    with pytest.raises(UnknownNameError, match="unknown data set '.*nowhere.txt'.* or a text file"):
        load(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="split 'valid': empty"):
        Text("t", np.zeros(3, np.int32), np.zeros(0, np.int32), np.zeros(1, np.int32), Vocabulary("a"))


@pytest.mark.data
def test_tinyshakespeare():
    if not (DATA / "tinyshakespeare").is_dir():
        pytest.skip("shared/data/tinyshakespeare is not beside the checkout")
    text = load("tinyshakespeare", DATA, download=False)
    assert [len(text.train), len(text.valid), len(text.test)] == [1003854, 55770, 55770] and text.features == 65
    assert text.vocabulary.decode(text.train[:14]) == "First Citizen:"
    assert text.provenance["files"]["input.txt"]["verified"]
