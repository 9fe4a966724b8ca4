"""Values in the terms of compose and Kubernetes: names of objects, numbers of probes, node selectors for cards.

Everything is computed from the resolved project; how texts are quoted is in `quoting`.
"""

import hashlib
from math import ceil

from flashgen.resolved import ResolvedProject, ResolvedResources, ResolvedServer

# Names of services and values of labels.
_MAX_NAME_LENGTH = 63
_HASH_LENGTH = 8

# A rollout that makes no progress for the time that start-up may take, and this much more, has failed.
_ROLLOUT_MARGIN_SECONDS = 120

_COMPOSE_UNITS = (("g", 2**30), ("m", 2**20), ("k", 2**10))

MatchExpression = dict[str, str | list[str]]


def object_name(project: ResolvedProject, part: str) -> str:
    """`<project>-<part>` as a DNS label; too long a name is cut and ends in a hash of the whole."""
    name = f"{project.name}-{part}"
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: _MAX_NAME_LENGTH - _HASH_LENGTH - 1].rstrip('-')}-{digest}"


def failures_within(seconds: int, period: int) -> int:
    """`failureThreshold` of a probe that asks every `period` seconds and allows `seconds` in all."""
    return ceil(seconds / period)


def rollout_seconds(startup_seconds: int) -> int:
    """`progressDeadlineSeconds` of a Deployment: more than its pods may take to start."""
    return startup_seconds + _ROLLOUT_MARGIN_SECONDS


def slowest_start(servers: tuple[ResolvedServer, ...]) -> int:
    """Seconds until the last of the servers may be ready."""
    return max(server.startup_seconds for server in servers)


def all_secrets(project: ResolvedProject) -> list[str]:
    """Names of the secrets that any server reads, sorted."""
    return sorted({secret for server in project.servers for secret in server.secrets})


def with_fact(project: ResolvedProject, fact: str) -> list[ResolvedServer]:
    """The servers of which `fact` is true: "hub_models", "gpu" …"""
    return [server for server in project.servers if fact in server.facts]


def weights_variable(folder: str) -> str:
    """Names the folder with a model's weights where the spec has a path that is of one machine only."""
    return f"FLASHGEN_WEIGHTS_{folder.upper().replace('-', '_')}"


def compose_bytes(number: int) -> str:
    """Bytes as compose writes them, exact: `2g`, `15625000k`, `1000b`."""
    for unit, size in _COMPOSE_UNITS:
        if number and number % size == 0:
            return f"{number // size}{unit}"
    return f"{number}b"


def cpu_shares(cpus: float) -> int:
    """The weight of a container against others, as Kubernetes derives it from a CPU request."""
    return max(2, round(cpus * 1024))


def card_terms(resources: ResolvedResources) -> list[list[MatchExpression]]:
    """Node selector terms (one must match) of expressions (all must match) for the minimums of the card.

    The labels are those of NVIDIA's GPU feature discovery. `Gt` is strict and takes one integer, and a capability has
    a major and a minor label: 8.6 or more is "major above 8" or "major 8 and minor above 5".
    """
    memory: list[MatchExpression] = []
    if resources.gpu_memory_bytes is not None:
        memory = [_above("nvidia.com/gpu.memory", resources.gpu_memory_bytes // 2**20 - 1)]
    if resources.gpu_cuda_capability is None:
        return [memory] if memory else []
    major, minor = resources.gpu_cuda_capability
    if minor == 0:
        return [[_above("nvidia.com/gpu.compute.major", major - 1), *memory]]
    same_major: MatchExpression = {
        "key": "nvidia.com/gpu.compute.major",
        "operator": "In",
        "values": [str(major)],
    }
    return [
        [_above("nvidia.com/gpu.compute.major", major), *memory],
        [same_major, _above("nvidia.com/gpu.compute.minor", minor - 1), *memory],
    ]


def _above(label: str, number: int) -> MatchExpression:
    return {"key": label, "operator": "Gt", "values": [str(number)]}
