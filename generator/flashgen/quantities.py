"""Shows bytes, processors and versions the way compose, Kubernetes and people write them."""

from fractions import Fraction

# Units of Kubernetes, largest first; a unit fits when the number of bytes is a whole multiple of it.
_KUBERNETES_UNITS = (("Gi", 2**30), ("G", 10**9), ("Mi", 2**20), ("M", 10**6), ("Ki", 2**10), ("k", 10**3))
_HUMAN_UNITS = (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10), ("kB", 10**3))

# `88143 KiB` is exact, and nobody can read it.
_MOST_WHOLE_UNITS = 10_000


def k8s_quantity(number: int) -> str:
    """Bytes as Kubernetes writes them, exact: `2Gi`, `16G`."""
    for unit, size in _KUBERNETES_UNITS:
        if number and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def cpu_quantity(cpus: float) -> str:
    """Processors as Kubernetes writes them: `2`, `500m`."""
    thousandths = round(Fraction(cpus) * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def mebibytes(number: int) -> int:
    """Whole MiB in a number of bytes, rounded down: 24 GB are 22888, which a card sold as 24 GB has."""
    return number // 2**20


def human_bytes(number: int) -> str:
    """Bytes for people: `2 GiB`, `16 GB`, else one decimal of the largest binary unit."""
    for unit, size in _HUMAN_UNITS:
        if number and number % size == 0 and number // size < _MOST_WHOLE_UNITS:
            return f"{number // size} {unit}"
    return binary_bytes(number)


def binary_bytes(number: int) -> str:
    """One decimal of the largest binary unit, for numbers that are compared: `95.4 MiB`."""
    for unit, size in _HUMAN_UNITS[::2]:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def capability(version: tuple[int, int]) -> str:
    """A CUDA compute capability: `9.0`."""
    return f"{version[0]}.{version[1]}"
