"""A linter of Kubernetes objects for what schemas cannot see: references, quantities, selectors, names, security.

It takes the objects that `kustomize` gives for a whole project and returns one sentence per problem.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

Object = dict[str, Any]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}$)[a-z0-9]+(-[a-z0-9]+)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS = {None: Fraction(1), "m": Fraction(1, 1000)}
for _power, _letter in enumerate("kMGTP", start=1):
    _UNITS[_letter] = Fraction(1000**_power)
    _UNITS[f"{_letter.upper()}i"] = Fraction(1024**_power)

# Supplied from outside: by a person who creates it, or by the cluster.
EXTERNAL_SECRETS = re.compile(r".*-secrets(-[0-9a-f]{8})?")


def lint(objects: list[Object]) -> list[str]:
    """Everything that is wrong with the objects of one project."""
    checks: tuple[Callable[[list[Object]], Iterator[str]], ...] = (
        _names,
        _selectors,
        _services,
        _disruption_budgets,
        _network_policies,
        _pods,
    )
    return [problem for check in checks for problem in check(objects)]


def quantity(value: str | int) -> Fraction:
    """A quantity as Kubernetes reads it; raises `ValueError`."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"`{value}` is no quantity")
    return Fraction(match[1]) * _UNITS[match[2]]


def pod_templates(objects: list[Object]) -> list[tuple[str, Object]]:
    """Name and pod template of every Deployment; pods by themselves count as well."""
    deployments = [(_title(item), item["spec"]["template"]) for item in objects if item["kind"] == "Deployment"]
    return deployments + [(_title(item), item) for item in objects if item["kind"] == "Pod"]


def _title(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def _names(objects: list[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        pattern = _SERVICE_NAME if item["kind"] == "Service" else _LABEL
        if not pattern.fullmatch(item["metadata"]["name"]):
            yield f"{_title(item)}: its name is no DNS label"
        for label in item["metadata"].get("labels", {}).values():
            if not isinstance(label, str) or not _LABEL_VALUE.fullmatch(label):
                yield f"{_title(item)}: `{label}` is no value of a label"
        if _title(item) in seen:
            yield f"{_title(item)}: there are two"
        seen.add(_title(item))


def _selectors(objects: list[Object]) -> Iterator[str]:
    for item in objects:
        if item["kind"] == "Deployment":
            labels = item["spec"]["template"]["metadata"]["labels"]
            if not _selects(item["spec"]["selector"]["matchLabels"], labels):
                yield f"{_title(item)}: its selector does not match its template"


def _services(objects: list[Object]) -> Iterator[str]:
    for item in (item for item in objects if item["kind"] == "Service"):
        selected = [pod for _, pod in pod_templates(objects) if _selects(item["spec"]["selector"], _labels(pod))]
        if not selected:
            yield f"{_title(item)}: selects no pod"
        for port in item["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if any(target not in _port_names(pod) and target not in _port_numbers(pod) for pod in selected):
                yield f"{_title(item)}: no container has the port `{target}`"
            if not 0 < port["port"] < 65536:
                yield f"{_title(item)}: {port['port']} is no port"


def _disruption_budgets(objects: list[Object]) -> Iterator[str]:
    for item in (item for item in objects if item["kind"] == "PodDisruptionBudget"):
        spec = item["spec"]
        if "minAvailable" in spec or spec.get("maxUnavailable", 0) < 1:
            yield f"{_title(item)}: keeps a node from being drained"
        if not any(_selects(spec["selector"]["matchLabels"], _labels(pod)) for _, pod in pod_templates(objects)):
            yield f"{_title(item)}: selects no pod"


def _network_policies(objects: list[Object]) -> Iterator[str]:
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    for title, pod in pod_templates(objects):
        if not any(_selects(item["spec"]["podSelector"].get("matchLabels", {}), _labels(pod)) for item in policies):
            yield f"{title}: has no network policy"
    for item in policies:
        for rule in (*item["spec"].get("ingress", ()), *item["spec"].get("egress", ())):
            for peer in (*rule.get("from", ()), *rule.get("to", ())):
                labels = peer.get("podSelector", {}).get("matchLabels", {})
                of_this_project = "namespaceSelector" not in peer
                if of_this_project and not any(_selects(labels, _labels(pod)) for _, pod in pod_templates(objects)):
                    yield f"{_title(item)}: names pods that are not there"


def _pods(objects: list[Object]) -> Iterator[str]:
    claims = {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
    for title, pod in pod_templates(objects):
        for problem in (
            *_security(pod),
            *_volumes(pod, claims),
            *_references(pod),
            *_grace(pod),
            *(problem for container in pod["spec"]["containers"] for problem in _container(container)),
        ):
            yield f"{title}: {problem}"


def _security(pod: Object) -> Iterator[str]:
    """The restricted profile of Pod Security, and no token or environment that nobody asked for."""
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the API server"
    if spec.get("enableServiceLinks") is not False:
        yield "gets environment variables of services"
    for container in spec["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield "may gain privileges"
        if own.get("privileged"):
            yield "is privileged"


def _volumes(pod: Object, claims: set[str]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
    mounted = {mount["name"] for container in pod["spec"]["containers"] for mount in container.get("volumeMounts", ())}
    for name in mounted ^ volumes.keys():
        yield f"the volume `{name}` is not both there and mounted"
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"the claim `{claim}` is not there"
        limit = volume.get("emptyDir", {}).get("sizeLimit")
        if limit is not None:
            quantity(limit)


def _references(pod: Object) -> Iterator[str]:
    for container in pod["spec"]["containers"]:
        names = [variable["name"] for variable in container.get("env", ())]
        if len(names) != len(set(names)):
            yield "sets a variable twice"
        for variable in container.get("env", ()):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret is not None and not EXTERNAL_SECRETS.fullmatch(secret["name"]):
                yield f"reads the secret `{secret['name']}`, which nobody is told to make"


def _grace(pod: Object) -> Iterator[str]:
    grace = pod["spec"].get("terminationGracePeriodSeconds")
    for container in pod["spec"]["containers"]:
        drain = [int(item["value"]) for item in container.get("env", ()) if item["name"] == "FLASHGEN_DRAIN_SECONDS"]
        pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if drain and (grace is None or grace <= pre_stop + drain[0]):
            yield "is killed before it has drained"


def _container(container: Object) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name, limit in limits.items():
        if name in requests and quantity(requests[name]) > quantity(limit):
            yield f"requests more {name} than its limit"
    if requests.get("memory") is None or requests.get("memory") != limits.get("memory"):
        yield "its memory is not both request and limit"
    if "cpu" in limits:
        yield "its processors are throttled"
    if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        yield "its cards are not both request and limit"
    if quantity(limits.get("nvidia.com/gpu", 0)).denominator != 1:
        yield "asks for a part of a card"
    yield from _probes(container)


def _probes(container: Object) -> Iterator[str]:
    names = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for name in names:
        if not _PORT_NAME.fullmatch(name):
            yield f"`{name}` is no name of a port"
    probes = {
        kind: container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe") if kind in container
    }
    if names and len({probe["httpGet"]["path"] for probe in probes.values()}) != 3:
        yield "its three probes do not ask three different questions"
    for probe in probes.values():
        if probe["httpGet"]["port"] not in names:
            yield f"a probe asks the port `{probe['httpGet']['port']}`, which has no such name"
    if container.get("image", "").rpartition(":")[2] in ("", "latest"):
        yield "its image has no tag that stays"


def _labels(pod: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = pod["metadata"].get("labels", {})
    return labels


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def _port_names(pod: Object) -> set[str]:
    return {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}


def _port_numbers(pod: Object) -> set[int]:
    return {port["containerPort"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}
