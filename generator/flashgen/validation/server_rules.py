"""Servers: devices that the resources give, ports that are free, names and values of environment variables."""

from flashgen.diagnostics import quote
from flashgen.document import NodePath
from flashgen.units import parse_bytes, parse_cuda_capability
from flashgen.validation.engine_rules import check_engine
from flashgen.validation.facts import Facts, ModelFacts
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems
from flashgen.validation.residency_rules import check_prefetch, check_residency

FIRST_RPC_PORT = 6500

# A worker's operations port lies this far above its rpc_port.
OPERATIONS_OFFSET = 3000

_API_PORTS = {8000: "the API server's port", 9400: "the API server's operations port"}
_OWN_PREFIX = "FLASHGEN_"


def check_servers(facts: Facts, problems: Problems) -> None:
    """Reports what a server asks for and cannot have."""
    for server in facts.servers:
        resources = server.node.node("resources", problems)
        if resources is not None:
            _check_quantities(resources, problems)
            _check_cards(resources, problems)
        for model in server.models:
            _check_device(model, resources, problems)
        check_engine(server, resources, problems)
        check_residency(server, resources, problems)
        container = server.node.node("container", problems)
        if container is not None:
            _check_environment(container, problems)
    check_prefetch(facts, problems)
    _check_ports(facts, problems)
    _check_targets(facts, problems)


def _check_quantities(resources: Node, problems: Problems) -> None:
    for key in ("memory", "gpu_memory"):
        value = resources.get(key)
        if value is None:
            continue
        try:
            size = parse_bytes(int(value) if isinstance(value, float) else value)
        except ValueError as error:
            problems.at_value(resources.at(key), "FG107", str(error))
            continue
        if size < 1_000_000:
            message = f"`{key}` is only {size} bytes"
            problems.at_value(resources.at(key), "FG106", message, hint="expected a size such as `16GB`")
    capability = resources.get("gpu_cuda_capability")
    if capability is not None:
        try:
            parse_cuda_capability(capability)
        except ValueError as error:
            problems.at_value(resources.at("gpu_cuda_capability"), "FG107", str(error))


def _check_cards(resources: Node, problems: Problems) -> None:
    gpus = resources.get("gpus")
    if gpus is not None and gpus != int(gpus):
        problems.at_value(resources.at("gpus"), "FG108", "a fraction of a card is not supported yet")
    if gpus or resources.at("gpus") in problems.broken:
        return
    for key in ("gpu_memory", "gpu_cuda_capability"):
        if key in resources.data:
            found = "`gpus` is 0" if gpus == 0 else "there is no `gpus`"
            hint = "add `gpus: 1`" if gpus is None else f"remove `{key}`, or write `gpus: 1`"
            problems.at_key(resources.at(key), "FG220", f"`{key}` asks for a card, but {found}", hint=hint)


def _check_device(entry: ModelFacts, resources: Node | None, problems: Problems) -> None:
    model = entry.node
    device = model.get("device") if model else None
    gpus = resources.get("gpus") if resources else None
    if model is None or device is None or resources is None or gpus is None:
        return
    other = (resources.at("gpus"), f"{gpus:g} {'card' if gpus == 1 else 'cards'}")
    if device == "cpu" and gpus > 0:
        message = "`device` is `cpu`, but the server reserves cards"
        hint = "write `device: cuda`, or `gpus: 0`"
        problems.at_value(model.at("device"), "FG220", message, other=other, hint=hint)
    elif device.startswith("cuda") and gpus == 0:
        message = f"`device` is {quote(device)}, but the server has no card"
        hint = "write `gpus: 1`, or `device: cpu`"
        problems.at_value(model.at("device"), "FG220", message, other=other, hint=hint)
    elif device.startswith("cuda:") and int(device[5:]) >= max(1, gpus):
        message = f"{quote(device)} is beyond the server's cards"
        hint = "the index counts inside the container and begins at 0"
        problems.at_value(model.at("device"), "FG220", message, other=other, hint=hint)


def _check_ports(facts: Facts, problems: Problems) -> None:
    """Every worker uses its rpc_port and the one 3000 above; on one host all of them must differ."""
    taken: dict[int, tuple[NodePath, str]] = {}
    for server in facts.servers:
        if server.node.at("rpc_port") in problems.broken:
            continue
        written = server.node.get("rpc_port")
        port = int(written) if written is not None else FIRST_RPC_PORT + server.index
        path = server.node.at("rpc_port") if written is not None else server.name_path
        what = "rpc_port" if written is not None else "default rpc_port"
        uses = ((port, what), (port + OPERATIONS_OFFSET, "operations port"))
        if all(_is_free(used, use, path, taken, problems) for used, use in uses):
            for used, use in uses:
                taken[used] = (path, f"{use} {used} of server {quote(server.name)}")


def _is_free(port: int, use: str, path: NodePath, taken: dict[int, tuple[NodePath, str]], problems: Problems) -> bool:
    hint = "choose another `rpc_port`"
    if port in _API_PORTS:
        problems.at_value(path, "FG221", f"the {use} {port} is {_API_PORTS[port]}", hint=hint)
    elif port in taken:
        problems.at_value(path, "FG221", f"the {use} {port} is taken", other=taken[port], hint=hint)
    return port not in _API_PORTS and port not in taken


def _check_environment(container: Node, problems: Problems) -> None:
    env = container.node("env", problems)
    names: dict[str, NodePath] = {}
    for name in env.data if env else ():
        assert env is not None, "names come from it"
        names[name] = env.at(name)
        if name.startswith(_OWN_PREFIX):
            problems.at_key(env.at(name), "FG230", f"{quote(name)}: names with `FLASHGEN_` are flashgen's own")
    for path, secret in container.texts("secrets"):
        name = secret_name(secret)
        if name.startswith(_OWN_PREFIX):
            problems.at_value(path, "FG230", f"{quote(name)}: names with `FLASHGEN_` are flashgen's own")
        if name in names:
            other = (names[name], "first here")
            problems.at_value(path, "FG202", f"the variable {quote(name)} is set twice", other=other)
        names.setdefault(name, path)


def secret_name(written: str) -> str:
    """`HF_TOKEN` of `${HF_TOKEN}` or `HF_TOKEN`."""
    return written[2:-1] if written.startswith("${") else written


def _check_targets(facts: Facts, problems: Problems) -> None:
    deploy = facts.root.node("deploy", problems)
    first: dict[str, NodePath] = {}
    for path, target in deploy.texts("targets") if deploy else ():
        if target in first:
            other = (first[target], "first here")
            problems.at_value(path, "FG202", f"target {quote(target)} stands twice in this list", other=other)
        first.setdefault(target, path)
