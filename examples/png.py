"""PNG, as much of it as a thumbnail needs: 8 bits a channel, grey or colour, with alpha or without, not interlaced.

Lengths are checked before anything is unpacked, so that a small file cannot become a large picture.
"""

import struct
import zlib
from collections.abc import Iterator

PIXELS_MAX = 4_000_000

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">II5B")
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_COLOUR_TYPES = {channels: colour_type for colour_type, channels in _CHANNELS.items()}


class NotServed(ValueError):
    """No PNG picture, or one of a kind or size that is not served."""


def read_header(picture: bytes) -> tuple[int, int, int]:
    """Width, height, and channels of a picture."""
    name, header = next(_chunks(picture), ("", b""))
    if name != "IHDR" or len(header) != _HEADER.size:
        raise NotServed("this is no PNG picture")
    width, height, depth, colour_type, _, _, interlaced = _HEADER.unpack(header)
    if depth != 8 or colour_type not in _CHANNELS or interlaced:
        raise NotServed(f"{depth} bits a channel, colour type {colour_type}, interlaced {interlaced}: not served")
    if not 0 < width * height <= PIXELS_MAX:
        raise NotServed(f"{width} x {height} pixels: at most {PIXELS_MAX} in all are served")
    return width, height, _CHANNELS[colour_type]


def scale(picture: bytes, size: int) -> bytes:
    """Make a picture smaller, to sides of at most `size`: each pixel is the mean of those it replaces."""
    width, height, channels = read_header(picture)
    longest = max(width, height, size)
    new_width, new_height = max(1, width * size // longest), max(1, height * size // longest)
    columns = [(x * width // new_width, (x + 1) * width // new_width) for x in range(new_width)]
    rows = _rows(picture, width, height, channels)
    scaled = []
    for y in range(new_height):
        count = (y + 1) * height // new_height - y * height // new_height
        sums = list(next(rows))
        for _ in range(count - 1):
            sums = [above + here for above, here in zip(sums, next(rows), strict=True)]
        scaled.append(
            bytes(
                sum(sums[begin * channels + channel : end * channels : channels]) // ((end - begin) * count)
                for begin, end in columns
                for channel in range(channels)
            )
        )
    return write(new_width, new_height, channels, scaled)


def write(width: int, height: int, channels: int, rows: list[bytes]) -> bytes:
    """A picture of these rows."""
    header = _HEADER.pack(width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _chunks(picture: bytes) -> Iterator[tuple[str, bytes]]:
    if not picture.startswith(_SIGNATURE):
        return
    start = len(_SIGNATURE)
    while len(picture) >= start + 12:
        (length,) = struct.unpack_from(">I", picture, start)
        name, data = picture[start + 4 : start + 8], picture[start + 8 : start + 8 + length]
        start += 12 + length
        if picture[start - 4 : start] != struct.pack(">I", zlib.crc32(name + data)):
            raise NotServed("the picture is damaged")
        yield name.decode("latin-1"), data


def _rows(picture: bytes, width: int, height: int, channels: int) -> Iterator[bytes]:
    """The pixels, row by row, their filters undone (PNG specification, section 9)."""
    packed = b"".join(data for name, data in _chunks(picture) if name == "IDAT")
    step = 1 + width * channels
    try:
        plain = zlib.decompressobj().decompress(packed, step * height)
    except zlib.error as error:
        raise NotServed(f"the picture is damaged: {error}") from error
    if len(plain) != step * height:
        raise NotServed("the picture is cut short")
    row = bytes(width * channels)
    for start in range(0, len(plain), step):
        row = _unfiltered(plain[start], bytearray(plain[start + 1 : start + step]), row, channels)
        yield row


def _unfiltered(kind: int, row: bytearray, above: bytes, channels: int) -> bytes:
    if kind == 2:
        return bytes([(here + up) & 255 for here, up in zip(row, above, strict=True)])
    if kind > 4:
        raise NotServed(f"the picture is damaged: there is no filter {kind}")
    for index, up in enumerate(above if kind else b""):
        left = row[index - channels] if index >= channels else 0
        if kind == 1:
            row[index] = (row[index] + left) & 255
        elif kind == 3:
            row[index] = (row[index] + (left + up) // 2) & 255
        else:
            corner = above[index - channels] if index >= channels else 0
            row[index] = (row[index] + _nearest(left, up, corner)) & 255
    return bytes(row)


def _nearest(left: int, up: int, corner: int) -> int:
    """Paeth's predictor."""
    guess = left + up - corner
    by_left, by_up, by_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if by_left <= by_up and by_left <= by_corner:
        return left
    return up if by_up <= by_corner else corner
