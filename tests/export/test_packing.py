"""Codes in words: nothing is lost, and the layout is the one that the docstring shows."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.export import packing
from isvit_lightning.export.packing import pack, unpack

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    bits = draw(st.integers(2, 8))
    columns = draw(st.integers(1, 70))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=columns, max_size=columns)
    return draw(st.lists(row, min_size=1, max_size=4)), bits


def slow_words(row: list[int], bits: int) -> list[int]:
    """Words of one row as signed numbers, by way of one string of 0 and 1."""
    # The first code lies in the lowest bits, which a bit string writes last.
    text = "".join(f"{code:0{bits}b}" for code in reversed(row))
    text = text.zfill(-(-len(text) // 32) * 32)
    words = [text[end - 32 : end] for end in range(len(text), 0, -32)]
    return [int(word, 2) - (2**32 if word[0] == "1" else 0) for word in words]


@given(codes_and_bits())
@settings(max_examples=100, deadline=None)
def test_round_trip_and_layout(drawn: tuple[list[list[int]], int]) -> None:
    rows, bits = drawn
    codes = torch.tensor(rows, dtype=torch.int32)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [slow_words(row, bits) for row in rows]
    assert torch.equal(unpack(words, bits, codes.shape[1]), codes)


@BITS
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 7, 8, 9, 10, 11, 15, 16, 17, 31, 32, 33, 64, 65])
def test_round_trip_of_the_largest_codes(bits: int, columns: int) -> None:
    codes = torch.full((3, columns), 2**bits - 1, dtype=torch.int32)
    words = pack(codes, bits)
    assert words.shape == (3, math.ceil(columns * bits / 32))
    assert torch.equal(unpack(words, bits, columns), codes)


@BITS
@pytest.mark.parametrize("columns", [1, 5, 31, 32])
def test_bits_left_over_are_zero(bits: int, columns: int) -> None:
    words = pack(torch.full((1, columns), 2**bits - 1), bits)
    numbers = [word & 0xFFFF_FFFF for word in words[0].tolist()]
    assert sum(number << 32 * place for place, number in enumerate(numbers)) == 2 ** (bits * columns) - 1


@BITS
@pytest.mark.parametrize("stranger", [-1, None])
def test_a_code_out_of_range_is_refused(bits: int, stranger: int | None) -> None:
    codes = torch.zeros(2, 5, dtype=torch.int32)
    codes[1, 3] = 2**bits if stranger is None else stranger
    with pytest.raises(ValueError, match=rf"expected 0\.\.{2**bits - 1}"):
        pack(codes, bits)


def test_the_docstring_runs() -> None:
    result = doctest.testmod(packing)
    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.export
@BITS
@pytest.mark.parametrize("columns", [1, 7, 32, 33, 100])
def test_compressed_tensors_packs_alike(bits: int, columns: int) -> None:
    """Its codes are signed: ours less half their number."""
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", reason="extra dev is missing")
    codes = torch.randint(0, 2**bits, (6, columns), generator=torch.Generator().manual_seed(columns))
    signed = (codes - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(theirs.pack_to_int32(signed, bits), pack(codes, bits))
    assert torch.equal(theirs.pack_to_int32(signed, bits, packed_dim=0), pack(codes.T, bits).T)
    assert torch.equal(theirs.unpack_from_int32(pack(codes, bits), bits, codes.shape), signed)
