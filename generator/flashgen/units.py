"""Quantities as users write them: bytes (`16GB`, `16GiB`), durations (`5ms`), CUDA compute capabilities (`9.0`).

GB is 10^9 and GiB is 2^30, as in Kubernetes: read as binary, `24GB` would refuse the 24 GB cards themselves.
All functions raise `ValueError` with a message for users: lower case, no full stop.
"""

import re
from fractions import Fraction

_PREFIXES = "KMGTP"
_FACTORS: dict[str, int] = {"": 1, "B": 1, "k": 1000, "kB": 1000}
for _power, _prefix in enumerate(_PREFIXES, start=1):
    _FACTORS |= {_prefix: 1000**_power, f"{_prefix}B": 1000**_power}
    _FACTORS |= {f"{_prefix}i": 1024**_power, f"{_prefix}iB": 1024**_power}
_BY_LOWER_CASE = {unit.lower(): unit for unit in _FACTORS if len(unit) != 1}

_BYTES = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m)?")
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60)}
_CAPABILITY = re.compile(r"([1-9][0-9]?)\.([0-9])")

# No process runs in less, so a smaller number is a forgotten unit.
MIN_MEMORY_BYTES = 1_000_000


def parse_bytes(value: str | int) -> int:
    """`16GB`, `16GiB`, `16Gi`, `1.5G` or a number of bytes, in bytes."""
    if isinstance(value, int):
        return value
    match = _BYTES.fullmatch(value)
    if match is None:
        raise ValueError(f"expected a size such as `16GB` or `16GiB`, found `{value}`")
    number, unit = match.groups()
    if unit not in _FACTORS:
        raise ValueError(_unknown_unit(number, unit))
    size = Fraction(number) * _FACTORS[unit]
    if size.denominator != 1:
        raise ValueError(f"`{value}` is not a whole number of bytes")
    return int(size)


def format_bytes(size: int) -> str:
    """The shortest exact form: `16GB`, `16GiB`, `1536MiB`, `123`."""
    candidates = [str(size)]
    for unit, factor in _FACTORS.items():
        if len(unit) >= 2 and unit != "kB" and unit.endswith("B") and size and size % factor == 0:
            candidates.append(f"{size // factor}{unit}")
    return min(candidates, key=lambda text: (len(text.rstrip("BiKMGTP")), len(text)))


def parse_duration(value: str | float) -> float:
    """`500ms`, `30s`, `5m` or a number of seconds, in seconds."""
    match = _DURATION.fullmatch(str(value))
    if match is None:
        raise ValueError(f"expected a duration such as `500ms` or `30s`, found `{value}`")
    return float(Fraction(match[1]) * _SECONDS[match[2] or "s"])


def parse_cuda_capability(value: str | float) -> tuple[int, int]:
    """`9.0`, `"8.6"` or `9` as (major, minor)."""
    text = f"{value}.0" if isinstance(value, int) else str(value)
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a CUDA compute capability such as `9.0` or `8.6`, found `{value}`")
    return int(match[1]), int(match[2])


def format_cuda_capability(capability: tuple[int, int]) -> str:
    """`(9, 0)` as `9.0`."""
    return f"{capability[0]}.{capability[1]}"


def _unknown_unit(number: str, unit: str) -> str:
    message = f"`{unit}` is not a unit of size"
    if known := _BY_LOWER_CASE.get(unit.lower()):
        return f"{message}; did you mean `{number}{known}`?"
    if len(unit) == 1 and unit.upper() in _PREFIXES:
        return f"{message}; did you mean `{number}{unit.upper()}B`?"
    return f"{message}; units are KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)"
