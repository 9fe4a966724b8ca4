import copy
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.compiler.blueprint_projects import rendered, write
from tests.compiler.manifest_lint import lint
from tests.compiler.nasty_specs import as_yaml, long_spec, many_servers_spec
from tests.golden_trees import GOLDEN, NAMES

KUBECTL = shutil.which("kubectl")
OLDEST, NEWEST = "1.30", "1.37"
FOLDERS = ("base", "overlays/dev", "overlays/prod")

Object = dict[str, Any]
Path_ = tuple[str | int, ...]
REMOVED = object()


@dataclass(frozen=True)
class Manifests:
    """`deploy/k8s` of one project: what kustomize makes of each folder, and the pods beside them."""

    by_folder: dict[str, list[Object]]
    loaders: list[Object]


@pytest.fixture(scope="module", params=[*NAMES, "many", "long"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Those of a sample, or of a spec with many servers or long names."""
    if request.param in NAMES:
        project = GOLDEN / request.param
    else:
        spec = {"many": many_servers_spec, "long": long_spec}[request.param]()
        folder = tmp_path_factory.mktemp(request.param)
        project = write(rendered(folder, as_yaml(spec)), folder / "project")
    k8s = project / "deploy" / "k8s"
    loaders = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(k8s.glob("weights/*.yaml"))]
    return Manifests({folder: objects_of(k8s / folder) for folder in FOLDERS}, loaders)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_valid_in(manifests: Manifests, version: str) -> None:
    """No unknown field, no missing one, and no kind that the schemas do not know: that raises as well."""
    for item in manifests.by_folder["overlays/prod"] + manifests.loaders:
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_fit_together(manifests: Manifests, folder: str) -> None:
    """Selectors, references, quantities, ports, probes, grace periods and the restricted security profile."""
    objects = manifests.by_folder[folder]

    assert len(objects) >= 9
    assert lint(objects) == []


def test_a_rollout_outlasts_the_start_of_its_pods(manifests: Manifests) -> None:
    """A Deployment counts as failed only after the startup probe has given up."""
    for item in manifests.by_folder["base"]:
        if item["kind"] == "Deployment":
            probe = item["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
            assert item["spec"]["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def test_workers_are_found_one_by_one(manifests: Manifests) -> None:
    """The Service of a worker is headless, and lists workers that are not ready: they say why."""
    services = [item for item in manifests.by_folder["base"] if item["kind"] == "Service"]
    workers = [item for item in services if item["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"]

    assert workers
    for item in workers:
        assert item["spec"]["clusterIP"] == "None"
        assert item["spec"]["publishNotReadyAddresses"] is True


POD = ("template", "spec")
CONTAINER = (*POD, "containers", 0)
LIMITS = (*CONTAINER, "resources", "limits")
LIVENESS = (*CONTAINER, "livenessProbe", "httpGet")
SECRET = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "other", "key": "X"}}}

# What is seeded into the `spec` of the first object of a kind that has the path, and what the linter says to it.
DEFECTS: list[tuple[str, Path_, Any, str]] = [
    ("Deployment", ("selector", "matchLabels"), {"a": "b"}, "does not match its template"),
    ("Deployment", (*POD, "securityContext", "runAsNonRoot"), REMOVED, "may run as root"),
    ("Deployment", (*POD, "securityContext", "seccompProfile"), REMOVED, "has no seccomp profile"),
    ("Deployment", (*POD, "automountServiceAccountToken"), REMOVED, "gets a token"),
    ("Deployment", (*POD, "enableServiceLinks"), REMOVED, "gets environment variables of services"),
    ("Deployment", (*POD, "volumes", 0), {"name": "other"}, "is not both there and mounted"),
    (
        "Deployment",
        (*POD, "volumes", 2, "persistentVolumeClaim", "claimName"),
        "other",
        "the claim `other` is not there",
    ),
    ("Deployment", (*POD, "terminationGracePeriodSeconds"), 30, "is killed before it has drained"),
    ("Deployment", (*CONTAINER, "securityContext", "capabilities"), REMOVED, "may gain privileges"),
    ("Deployment", (*CONTAINER, "securityContext", "privileged"), True, "is privileged"),
    ("Deployment", (*CONTAINER, "env"), [{"name": "X", "value": ""}] * 2, "sets a variable twice"),
    ("Deployment", (*CONTAINER, "env", 0), SECRET, "reads the secret"),
    ("Deployment", (*CONTAINER, "ports", 0, "name"), "a-port-name-too-long", "is no name of a port"),
    ("Deployment", (*CONTAINER, "image"), "worker:latest", "no tag that stays"),
    ("Deployment", (*LIMITS, "cpu"), "1m", "requests more cpu than its limit"),
    ("Deployment", (*LIMITS, "cpu"), "64", "its processors are throttled"),
    ("Deployment", (*LIMITS, "memory"), REMOVED, "its memory is not both"),
    ("Deployment", (*LIMITS, "nvidia.com/gpu"), REMOVED, "its cards are not both"),
    ("Deployment", (*LIMITS, "nvidia.com/gpu"), "500m", "asks for a part of a card"),
    ("Deployment", (*LIVENESS, "path"), "/readyz", "three different questions"),
    ("Deployment", (*LIVENESS, "port"), "other", "which has no such name"),
    ("Service", ("selector",), {"a": "b"}, "selects no pod"),
    ("Service", ("ports", 0, "targetPort"), "other", "no container has the port `other`"),
    ("Service", ("ports", 0, "port"), 99999, "99999 is no port"),
    ("PodDisruptionBudget", ("minAvailable",), 1, "keeps a node from being drained"),
    ("PodDisruptionBudget", ("selector", "matchLabels"), {"a": "b"}, "selects no pod"),
    ("NetworkPolicy", ("podSelector", "matchLabels"), {"a": "b"}, "has no network policy"),
    ("NetworkPolicy", ("ingress", 0, "from", 0, "podSelector", "matchLabels"), {"a": "b"}, "pods that are not there"),
]


@pytest.mark.parametrize(("kind", "path", "value", "problem"), DEFECTS, ids=lambda value: str(value)[:40])
def test_the_linter_sees(kind: str, path: Path_, value: Any, problem: str) -> None:
    """A good tree with one seeded defect is reported."""
    objects = copy.deepcopy(listed_objects(GOLDEN / "02-first-spec" / "deploy" / "k8s" / "base"))
    parents = [parent for item in objects if item["kind"] == kind for parent in parents_of(item["spec"], path)]

    for parent in parents:
        if value is REMOVED:
            parent.pop(path[-1], None)
        else:
            parent[path[-1]] = copy.deepcopy(value)

    assert any(problem in sentence for sentence in lint(objects))


def test_the_linter_has_nothing_to_say_about_the_tree_without_defects() -> None:
    """Else the seeded defects would prove nothing."""
    assert lint(listed_objects(GOLDEN / "02-first-spec" / "deploy" / "k8s" / "base")) == []


def test_kustomize_and_the_list_of_files_agree() -> None:
    """Nothing in `base` is left out of the kustomization."""
    for name in NAMES:
        base = GOLDEN / name / "deploy" / "k8s" / "base"
        listed = yaml.safe_load((base / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]

        assert sorted(listed) == sorted(path.name for path in base.iterdir() if path.name != "kustomization.yaml")


def objects_of(folder: Path) -> list[Object]:
    """The objects of a kustomization; without kubectl, those in the files that it lists."""
    if KUBECTL is None:
        return listed_objects(folder)
    result = subprocess.run([KUBECTL, "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(result.stdout))


def listed_objects(folder: Path) -> list[Object]:
    """The objects in the files that a kustomization lists."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    paths = [folder / name for name in listed]
    return [
        item
        for path in paths
        for item in (listed_objects(path) if path.is_dir() else [yaml.safe_load(path.read_text(encoding="utf-8"))])
    ]


def parents_of(spec: Any, path: Path_) -> list[Any]:
    """Where the last key of the path belongs; nothing where the way there is missing."""
    node = spec
    for key in path[:-1]:
        try:
            node = node[key]
        except (KeyError, IndexError):
            return []
    return [node]
