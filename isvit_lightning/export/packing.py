"""Integer codes in 32-bit words.

The layout, as an executable specification::

    >>> import torch
    >>> codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]])       # 3 bits: 10 codes per word
    >>> words = pack(codes, bits=3)
    >>> words.shape                                                     # rows, ceil(11 / 10)
    torch.Size([1, 2])
    >>> int(words[0, 0]) & 0b111_111_111 == 1 | 2 << 3 | 3 << 6         # the first code lies in the lowest bits
    True
    >>> torch.equal(unpack(words, bits=3, columns=11), codes)
    True

A word holds ``32 // bits`` codes (3 bits: 10, 4: 8, 6: 5, 8: 4); the bits left over are zero. It is the layout that
compressed-tensors calls ``pack-quantized``.
"""

import torch


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack ``codes (rows, columns)`` in ``[0, 2**bits)`` to int32 words ``(rows, ceil(columns / (32 // bits)))``.

    Raises:
        ValueError: a code does not fit into ``bits``.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes span {int(codes.min())}..{int(codes.max())}, expected 0..{2**bits - 1}")
    per_word = 32 // bits
    rows, columns = codes.shape
    words = -(-columns // per_word)
    padded = torch.zeros(rows, words * per_word, dtype=torch.int64, device=codes.device)
    padded[:, :columns] = codes
    shifts = torch.arange(per_word, device=codes.device) * bits
    packed = (padded.view(rows, words, per_word) << shifts).sum(dim=2)
    # Two's complement by hand: the top bit of a word is data, not a sign.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Inverse of :func:`pack`: codes ``(rows, columns)`` as int32."""
    per_word = 32 // bits
    shifts = torch.arange(per_word, device=words.device) * bits
    unsigned = words.to(torch.int64) & 0xFFFF_FFFF
    codes = (unsigned.unsqueeze(2) >> shifts) & (2**bits - 1)
    return codes.view(words.shape[0], -1)[:, :columns].to(torch.int32)
