"""A restricted reader of pickles: arrays come back, and nothing that a pickle names is called."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from bella.data.sets.pickles import read_pickle
from bella.errors import BellaError


def short(text: str) -> bytes:
    """A string as Python 2 writes it."""
    return b"U" + bytes([len(text)]) + text.encode("latin1")


def python2_batch(pixels: np.ndarray, labels: list[int], name: str = "labels") -> bytes:
    """A batch of CIFAR, opcode by opcode as Python 2 and the NumPy of its day wrote it."""
    raw = pixels.tobytes()
    dtype = (
        b"cnumpy\ndtype\n" + short("u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + short("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short("b") + b"\x87R"
        b"(K\x01" + b"".join(b"M" + struct.pack("<H", n) for n in pixels.shape) + b"\x86"
    )
    content = dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = short("data") + array + content + short(name) + numbers
    return b"\x80\x02}(" + entries + b"u."


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        PIXELS,
        np.asfortranarray(PIXELS),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.linspace(0, 1, 5),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
    ],
)
def test_arrays_of_every_protocol_come_back(tmp_path, protocol, array):
    path = tmp_path / "some"
    whole = {"data": array, "labels": [1, 2], "more": (None, "a", 2.5, b"x")}
    path.write_bytes(pickle.dumps(whole, protocol))
    found = read_pickle(path)
    assert found["labels"] == [1, 2]
    assert found["more"] == (None, "a", 2.5, b"x")
    assert found["data"].dtype == array.dtype
    assert np.array_equal(found["data"], array)


def test_a_batch_of_python_2(tmp_path):
    content = python2_batch(PIXELS, [5, 0, 9])
    # Python's own reader takes it for the same.
    assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], PIXELS)
    (tmp_path / "batch").write_bytes(content)
    found = read_pickle(tmp_path / "batch")
    assert np.array_equal(found[b"data"], PIXELS)
    assert found[b"labels"] == [5, 0, 9]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), r"it names (posix|nt)\.mkdir"),
        ({"a": [Evil()]}, r"mkdir"),
        (OrderedDict(a=1), r"it names collections\.OrderedDict"),
        (np.array([Evil()], object), "mkdir"),
        (np.array(["a", None], object), "arrays of 'O8'|without bytes"),
        (np.zeros(2, [("a", "f4")]), "arrays of|V4"),
        (print, r"_*builtin(s|__)\.print"),
        ({1, 2}, "builtin.*set|a set"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, value, message, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(BellaError, match=f"cannot be read as a pickle of arrays .*({message})"):
        read_pickle(tmp_path / "some")
    assert not (tmp_path / "made-by-a-pickle").exists()


def forged(shape: bytes, content: bytes) -> bytes:
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + short("u1") + b"\x89\x88\x87R"
    return b"\x80\x03" + array + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."


@pytest.mark.parametrize(
    "content",
    [
        python2_batch(PIXELS, [1])[:-40],
        python2_batch(PIXELS, [1])[:500],
        b"",
        b"no pickle at all",
        b"\x80\x02(c__builtin__\neval\n",
        b"\x80\x02cnumpy\nndarray\n.",
        forged(b"J\xff\xff\xff\x7f\x85", b"C\x03abc"),
        forged(b"J\xff\xff\xff\xff\x85", b"C\x00"),
        forged(b"K\x02\x85", b"N"),
        b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x0a\x00\x00\x00zlib_codec\x86R.",
    ],
)
def test_damaged_and_forged_pickles_end_in_a_sentence(tmp_path, content):
    (tmp_path / "some").write_bytes(content)
    with pytest.raises(BellaError, match="cannot be read as a pickle of arrays"):
        read_pickle(tmp_path / "some")


def test_a_forged_array_of_the_right_size_is_read(tmp_path):
    """What the cases above are damaged copies of."""
    (tmp_path / "some").write_bytes(forged(b"K\x03\x85", b"C\x03abc"))
    assert read_pickle(tmp_path / "some").tolist() == [97, 98, 99]
