"""Sets of indices to bytes, and back: serialised roaring bitmaps.

A roaring bitmap takes at most about one bit for each index up to the highest, and a few bytes for
a run of neighbours: 240 bytes for the first million indices, 123 KiB for a random tenth of them.
The format is the portable one of https://github.com/RoaringBitmap/RoaringFormatSpec (64 bits), so
other programs can read it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catga_store.errors import CorruptRecordError

if TYPE_CHECKING:
    from pyroaring import BitMap64

__all__ = ["decode_bitmap", "encode_bitmap"]


def encode_bitmap(bitmap: BitMap64) -> bytes:
    """Encode a bitmap; the one passed in is not changed.

    Equal bitmaps usually have equal bytes, but not always: three neighbours take as many bytes as
    a list as they do as a run, and stay what they were. Compare bitmaps to tell whether they differ.
    """
    compact = bitmap.copy()
    compact.run_optimize()
    return compact.serialize()


def decode_bitmap(data: bytes) -> BitMap64:
    """Decode a bitmap; `CorruptRecordError` for anything but a whole and valid one.

    pyroaring checks the bounds and the structure of what it reads, so no bytes can make it read
    or write outside of them.
    """
    from pyroaring import BitMap64

    try:
        bitmap = BitMap64.deserialize(data)
    except (ValueError, IndexError) as error:  # IndexError: no bytes at all
        message = f"the {len(data)} bytes found are not a valid bitmap ({error})"
        raise CorruptRecordError(message, key=None) from error

    size = bitmap.__sizeof__()  # what it is serialised to
    if size != len(data):
        message = f"bitmap: expected {size} bytes, found {len(data)}"
        raise CorruptRecordError(message, key=None)

    return bitmap
