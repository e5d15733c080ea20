"""Z85 (ZeroMQ RFC 32), the text form of CURVE keys, without ZeroMQ. Pure."""

from __future__ import annotations

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


def decode(text: str) -> bytes:
    """Decode text of 5 characters for each 4 bytes. Raises ValueError."""
    out = bytearray()
    if len(text) % 5:
        raise ValueError(f"Z85 text of {len(text)} characters; expected a multiple of 5")
    for at in range(0, len(text), 5):
        value = 0
        for digit in text[at : at + 5]:
            if digit not in _VALUES:
                raise ValueError(f"{digit!r} is not a character of Z85")
            value = value * 85 + _VALUES[digit]
        if value >> 32:
            raise ValueError(f"Z85 group {text[at : at + 5]!r} is beyond 32 bits")
        out += value.to_bytes(4, "big")
    return bytes(out)


def encode(data: bytes) -> str:
    """Encode a multiple of 4 bytes. Raises ValueError."""
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes; expected a multiple of 4")
    out = []
    for at in range(0, len(data), 4):
        value = int.from_bytes(data[at : at + 4], "big")
        out += [_DIGITS[value // 85**power % 85] for power in (4, 3, 2, 1, 0)]
    return "".join(out)
