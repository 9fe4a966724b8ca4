from pathlib import Path

import pytest

from flashgen import deployment
from flashgen.resolved import ResolvedResources
from tests.compiler.projects import resolved

GB = 10**9


def resources(**changes: object) -> ResolvedResources:
    values = {"cpus": 2.0, "memory_bytes": 4 * GB, "gpus": 1, "gpu_memory_bytes": None, "gpu_cuda_capability": None}
    return ResolvedResources(**{**values, **changes})  # type: ignore[arg-type]  # the tests name the fields


def matches(terms: list[list[dict[str, object]]], *, major: int, minor: int, mebibytes: int) -> bool:
    """Whether Kubernetes would choose a node with such a card."""
    node = {"compute.major": major, "compute.minor": minor, "memory": mebibytes}

    def holds(expression: dict[str, object]) -> bool:
        value, allowed = node[str(expression["key"]).removeprefix("nvidia.com/gpu.")], expression["values"]
        assert isinstance(allowed, list)
        return value > int(allowed[0]) if expression["operator"] == "Gt" else str(value) in allowed

    return any(all(holds(expression) for expression in term) for term in terms)


@pytest.mark.parametrize("minimum", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_node_selectors_choose_cards_with_at_least_the_capability(minimum: tuple[int, int]) -> None:
    """Major and minor have labels of their own; together they compare as versions do."""
    terms = deployment.card_terms(resources(gpu_cuda_capability=minimum, gpu_memory_bytes=24 * GB))

    for major in range(6, 14):
        for minor in range(10):
            expected = (major, minor) >= minimum
            assert matches(terms, major=major, minor=minor, mebibytes=23028) is expected  # type: ignore[arg-type]
            assert not matches(terms, major=major, minor=minor, mebibytes=22887)  # type: ignore[arg-type]


def test_a_card_of_just_the_declared_size_is_chosen() -> None:
    """`Gt` is strict, so the selector says one MiB less: 24 GB are 22888 MiB."""
    terms = deployment.card_terms(resources(gpu_memory_bytes=24 * GB))

    assert terms == [[{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["22887"]}]]


def test_without_minimums_every_card_will_do() -> None:
    """No terms, and so no affinity."""
    assert deployment.card_terms(resources()) == []


@pytest.mark.parametrize(
    ("number", "written"), [(2 * 2**30, "2g"), (512 * 2**20, "512m"), (16 * GB, "15625000k"), (1000, "1000b")]
)
def test_compose_reads_bytes_exactly(number: int, written: str) -> None:
    """Its units are binary, so 16 GB are no whole number of `g`."""
    assert deployment.compose_bytes(number) == written


@pytest.mark.parametrize(("seconds", "failures"), [(1, 1), (10, 1), (11, 2), (82, 9)])
def test_a_startup_probe_never_gives_up_early(seconds: int, failures: int) -> None:
    """Periods are whole: the last one that is begun counts."""
    assert deployment.failures_within(seconds, 10) == failures


def test_names_of_objects_fit_and_differ(tmp_path: Path) -> None:
    """Two long names of one project stay two names of at most 63 characters."""
    project = resolved(tmp_path, f"name: {'p' * 40}\n" + SPEC)

    names = {deployment.object_name(project, f"{'s' * 39}{end}") for end in "ab"}

    assert deployment.object_name(project, "api") == f"{'p' * 40}-api"
    assert len(names) == 2
    assert max(map(len, names)) <= 63


SPEC = """\
apis: [{path: /v1/chat/completions}]
servers: [{model: {type: text_generation, uri: owner/model}}]
"""
