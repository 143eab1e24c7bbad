"""One header of a tar: its checksum, numbers, name and pax records (POSIX.1-2001, and GNU tar's base-256 numbers)."""

import zlib

BLOCK = 512
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstandard",
    b"\x04\x22M\x18": "lz4",
}


class Damaged(ValueError):
    """Where the tar cannot be followed any further, in words."""


def sum_is_right(header) -> bool:
    """The header's own checksum, its field read as blanks. Adler-32's low half is 1 + the sum of the bytes, mod 65521."""
    try:
        told = int(header[148:156].partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    without = sum(header[148:156]) - 8 * ord(" ")
    if (zlib.adler32(header) & 0xFFFF) == (1 + told + without) % 65521:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:])  # as old tars summed
    return told == signed + 8 * ord(" ")


def why_no_header(header, at) -> str:
    if at:
        return f"damaged at byte {at}: no member begins there"
    for magic, method in COMPRESSED.items():
        if header.startswith(magic):
            return f"compressed with {method}: a tar must be unpacked from that, for its pictures are read in any order"
    return "no tar"


def number_in(field_, at) -> int:
    """Octal digits, or the base-256 of GNU tar for 8 GB and more."""
    if field_[0] == 0x80:
        return int.from_bytes(field_[1:], "big")
    try:
        value = int(field_.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise Damaged(f"damaged at byte {at}: a size that is no number")
    return value


def decimal_in(value, at) -> int:
    if not value.isdigit():
        raise Damaged(f"damaged at byte {at}: a size that is no number")
    return int(value)


def pax_records(data, at) -> dict[bytes, bytes]:
    """{key: value} of "LENGTH KEY=VALUE\\n" records."""
    found, place = {}, 0
    while place < len(data) and data[place]:
        digits, blank, _ = data[place : place + 20].partition(b" ")
        if not blank or not digits.isdigit() or int(digits) <= len(digits) + 1 or place + int(digits) > len(data):
            raise Damaged(f"damaged at byte {at}: pax records that are none")
        key, _, value = data[place + len(digits) + 1 : place + int(digits)].partition(b"=")
        found[key] = value[:-1] if value.endswith(b"\n") else value
        place += int(digits)
    return found


def own_name(header) -> bytes:
    name = text_in(header[:100])
    prefix = text_in(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def text_in(data) -> bytes:
    return data.partition(b"\0")[0]


def padded(size) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK
