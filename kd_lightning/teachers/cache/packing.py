"""Class ids in as few bits as the number of classes allows."""

from __future__ import annotations

import torch
from torch import Tensor


def bits_per_id(classes: int) -> int:
    """Bits that hold any of the ids 0 to `classes - 1`: the logarithm to base 2, rounded up."""
    return max(1, (classes - 1).bit_length())


def packed_size(count: int, classes: int) -> int:
    """Bytes that `pack` takes for a row of `count` ids."""
    return -(-count * bits_per_id(classes) // 8)


def pack(ids: Tensor, classes: int) -> Tensor:
    """Store the ids of a row one after another, lowest bit first.

    Args:
        ids: integers `(N, k)` in [0, classes).
        classes: number of classes.

    Returns:
        uint8 `(N, packed_size(k, classes))`; the last bits of a row may be unused and are 0.
    """
    bits = bits_per_id(classes)
    count = ids.shape[-1]
    size = packed_size(count, classes)
    device = ids.device
    row_bits = torch.zeros(len(ids), 8 * size, dtype=torch.uint8, device=device)
    stop = count * bits
    for bit in range(bits):
        # Bit number `bit` of every id of the row.
        values = (ids >> bit) & 1
        row_bits[:, bit:stop:bits] = values
    exponents = torch.arange(8, dtype=torch.uint8, device=device)
    weights = 2**exponents
    row_bytes = row_bits.unflatten(-1, (size, 8))
    packed: Tensor = (row_bytes * weights).sum(-1)
    return packed.to(torch.uint8)


def unpack(packed: Tensor, count: int, classes: int) -> Tensor:
    """The ids that `pack` stored.

    Args:
        packed: uint8 `(N, packed_size(count, classes))`.
        count: ids per row.
        classes: number of classes.

    Returns:
        int64 `(N, count)`.
    """
    bits = bits_per_id(classes)
    # Computed on the device of the data, so that no step copies a table to it.
    first_bits = torch.arange(count, device=packed.device) * bits
    first_bytes = first_bits // 8
    shifts = first_bits % 8
    last_byte = packed.shape[-1] - 1
    device = packed.device
    words: Tensor = torch.zeros(len(packed), count, dtype=torch.int64, device=device)
    # An id starts at any of 8 bits of its first byte, and so may reach into one byte more.
    for number in range(-(-(bits + 7) // 8)):
        # Beyond the row the last byte is read again; no bit of it belongs to the id.
        place = (first_bytes + number).clamp(max=last_byte)
        values = packed.index_select(-1, place).long()
        words |= values << 8 * number
    mask = (1 << bits) - 1
    return (words >> shifts) & mask
