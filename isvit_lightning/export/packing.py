"""Integer codes in 32-bit words.

The layout, as an executable specification::

    >>> import torch
    >>> codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]])       # 3 bits: 33 bits in all
    >>> words = pack(codes, bits=3)
    >>> words.shape                                                     # rows, ceil(11 * 3 / 32)
    torch.Size([1, 2])
    >>> int(words[0, 0]) & 0b111_111_111 == 1 | 2 << 3 | 3 << 6         # the first code lies in the lowest bits
    True
    >>> int(words[0, 0]) >> 30 & 0b11, int(words[0, 1])                 # the last code, 3: two bits here, one there
    (3, 0)
    >>> torch.equal(unpack(words, bits=3, columns=11), codes)
    True

Code ``i`` of a row takes the bits ``i * bits`` to ``i * bits + bits - 1`` of it, bit ``n`` being bit ``n % 32`` of word
``n // 32``; no bit lies idle but at the end of a row, where they are zero. It is the layout that compressed-tensors has
called ``pack-quantized`` since its version 0.18.
"""

import torch

_WORD = 32


def words_of(columns: int, bits: int) -> int:
    """Number of words that a row of ``columns`` codes takes."""
    return -(-columns * bits // _WORD)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack ``codes (rows, columns)`` in ``[0, 2**bits)`` to int32 words ``(rows, ceil(columns * bits / 32))``.

    Raises:
        ValueError: a code does not fit into ``bits``.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes span {int(codes.min())}..{int(codes.max())}, expected 0..{2**bits - 1}")
    rows, columns = codes.shape
    groups = -(-columns // _WORD)
    padded = torch.zeros(rows, groups * _WORD, dtype=torch.int64, device=codes.device)
    padded[:, :columns] = codes
    padded = padded.view(rows, groups, _WORD)
    # One word more than 32 codes fill, so that the last one may be shifted like the others.
    packed = torch.zeros(rows, groups, bits + 1, dtype=torch.int64, device=codes.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        shifted = padded[:, :, place] << shift
        packed[:, :, word] |= shifted & 0xFFFF_FFFF
        packed[:, :, word + 1] |= shifted >> _WORD
    words = packed[:, :, :bits].reshape(rows, groups * bits)[:, : words_of(columns, bits)]
    # Two's complement by hand: the top bit of a word is data, not a sign.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Inverse of :func:`pack`: codes ``(rows, columns)`` as int32."""
    rows, groups = len(words), -(-columns // _WORD)
    padded = torch.zeros(rows, groups * bits + 1, dtype=torch.int64, device=words.device)
    padded[:, : words.shape[1]] = words.to(torch.int64) & 0xFFFF_FFFF
    low, high = padded[:, :-1].view(rows, groups, bits), padded[:, 1:].reshape(rows, groups, bits)
    codes = torch.empty(rows, groups, _WORD, dtype=torch.int32, device=words.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        # Unsigned 64 bits are not needed: at most 8 bits are read, from bit 31 of the lower word on.
        both = low[:, :, word] | (high[:, :, word] & 0xFF) << _WORD
        codes[:, :, place] = (both >> shift) & (2**bits - 1)
    return codes.view(rows, -1)[:, :columns]
