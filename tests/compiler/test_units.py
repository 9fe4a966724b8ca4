"""`flashgen.units`: sizes, durations and CUDA capabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashgen.units import (
    format_bytes,
    format_cuda_capability,
    parse_bytes,
    parse_cuda_capability,
    parse_duration,
)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1234, 1234),
        ("16GB", 16 * 10**9),
        ("16G", 16 * 10**9),
        ("16GiB", 16 * 2**30),
        ("16Gi", 16 * 2**30),
        ("512M", 512 * 10**6),
        ("1.5 GB", 1_500_000_000),
        ("0.1GB", 100_000_000),
        ("1TB", 10**12),
        ("10kB", 10_000),
        ("10KiB", 10_240),
        ("7B", 7),
        ("7", 7),
    ],
)
def test_gb_is_decimal_and_gib_is_binary(written: str | int, size: int) -> None:
    """As in Kubernetes, and as cards are sold."""
    assert parse_bytes(written) == size


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("16gb", "did you mean `16GB`"),
        ("16gib", "did you mean `16GiB`"),
        ("16g", "did you mean `16GB`"),
        ("16 gigs", "is not a unit"),
        ("GB", "expected a size"),
        ("-1GB", "expected a size"),
        ("1e9", "expected a size"),
        ("0.5B", "not a whole number of bytes"),
        ("9" * 40, "expected a size"),
    ],
)
def test_sizes_that_are_none(written: str, words: str) -> None:
    """The message says what would do."""
    with pytest.raises(ValueError, match=words):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0"), (123, "123"), (16 * 10**9, "16GB"), (2**30, "1GiB"), (1536 * 2**20, "1536MiB")]
)
def test_the_shortest_exact_form_is_shown(size: int, shown: str) -> None:
    """Never rounded."""
    assert format_bytes(size) == shown


@given(st.integers(min_value=0, max_value=2**62))
def test_a_formatted_size_reads_back(size: int) -> None:
    """`format_bytes` and `parse_bytes` are inverse."""
    shown = format_bytes(size)

    assert parse_bytes(int(shown) if shown.isdecimal() else shown) == size


@pytest.mark.parametrize(("written", "capability"), [(9.0, (9, 0)), ("8.6", (8, 6)), (9, (9, 0)), (12.1, (12, 1))])
def test_capabilities(written: str | float, capability: tuple[int, int]) -> None:
    """YAML reads 9.0 as a number; texts are taken too."""
    assert parse_cuda_capability(written) == capability
    assert parse_cuda_capability(format_cuda_capability(capability)) == capability


@pytest.mark.parametrize("written", ["sm_90", "9", "8.65", 8.65, 0.5, "90", "", "-9.0"])
def test_capabilities_that_are_none(written: str | float) -> None:
    """One digit after the point."""
    with pytest.raises(ValueError, match="CUDA compute capability"):
        parse_cuda_capability(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [("5ms", 0.005), ("0.5s", 0.5), ("30 s", 30), ("2m", 120), ("3", 3), (3, 3), (0.25, 0.25)]
)
def test_durations_have_a_unit_or_are_seconds(written: str | float, seconds: float) -> None:
    """As everywhere in a spec."""
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "ms", "5 minutes", "-1s", "1h", -1])
def test_what_is_no_duration_is_said(written: str | float) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match="expected a duration such as `500ms`"):
        parse_duration(written)
