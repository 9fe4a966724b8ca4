"""From a model's name to the worker that answers: names first, then who is ready and least busy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flashgen_runtime.config import ModelConfig, ServerConfig, ServiceConfig, Task
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.server.admission import limit_of
from flashgen_runtime.server.pool import Member, WorkerPool
from flashgen_runtime.server.readiness import state_of


class Target(NamedTuple):
    """A model, and where an api may ask for it."""

    api: str
    model: ModelConfig
    servers: tuple[str, ...]


class Router:
    """Knows the configuration's names and the workers behind them."""

    def __init__(self, config: ServiceConfig, pools: Mapping[str, WorkerPool]) -> None:
        self._servers = {server.name: server for server in config.servers}
        self._pools = pools

        # Found out once: every request asks.
        self._targets = {
            api.name: _targets(api.name, [self._servers[name] for name in api.servers]) for api in config.apis
        }
        self._all_targets = _targets("", config.servers)

    @property
    def models(self) -> Sequence[Target]:
        """Every model of the service, whoever may ask for it."""
        return self._all_targets

    def target(self, api: str, name: str | None, *, task: Task) -> Target:
        """The model called `name`, or the api's only one; raises `RequestError`."""
        targets = self._targets[api]
        if name is None:
            return _only([target for target in targets if target.model.task == task])
        return _with_task(_called(name, targets), task)

    def model(self, name: str) -> Target:
        """The model called `name`, whoever may ask for it; raises `RequestError`."""
        return _called(name, self._all_targets)

    def pick(self, target: Target) -> Member:
        """The ready worker with the fewest open requests; raises `RequestError` while there is none."""
        best: Member | None = None
        for server in target.servers:
            for member in self._pools[server].members:
                if member.is_ready and (best is None or member.open_requests < best.open_requests):
                    best = member
        if best is None:
            raise self._not_ready(target)
        return best

    def limit(self, target: Target) -> int:
        """Requests that may be open for this model at once."""
        return sum(
            limit_of(
                self._servers[name].engine.max_num_seqs, sum(member.is_ready for member in self._pools[name].members)
            )
            for name in target.servers
        )

    def status(self, target: Target) -> ModelStatus | None:
        """What a worker says about the model; `None` while none is connected that knows it."""
        for server in target.servers:
            for member in self._pools[server].members:
                for status in member.status.models if member.status is not None else ():
                    if status.id == target.model.id:
                        return status
        return None

    def is_ready(self, target: Target) -> bool:
        """Whether a worker would take a request now."""
        return any(member.is_ready for server in target.servers for member in self._pools[server].members)

    def has_no_chat_template(self, target: Target) -> bool:
        """Whether a worker has said that conversations are merely joined."""
        status = self.status(target)
        # Before it was loaded for the first time it could not know; then it has no `max_context` either.
        return status is not None and status.max_context > 0 and status.chat_template == "none"

    def _not_ready(self, target: Target) -> RequestError:
        states = [state_of(self._pools[server]) for server in target.servers]
        reasons = ", ".join(state.sentence for state in states)
        return RequestError(f"the model `{target.model.id}` is not ready: {reasons}", kind="unavailable")


def _targets(api: str, servers: Sequence[ServerConfig]) -> list[Target]:
    """The models of all servers; one that several have is one target."""
    targets: dict[str, Target] = {}
    for server in servers:
        for model in server.models:
            known = targets.get(model.id)
            names = (server.name,) if known is None else (*known.servers, server.name)
            targets[model.id] = Target(api, model, names)
    return list(targets.values())


def _called(name: str, targets: Sequence[Target]) -> Target:
    for target in targets:
        if name == target.model.id or name in target.model.aliases:
            return target
    message = f"the model `{name}` does not exist; there is {_listed(targets)}"
    raise RequestError(message, kind="unknown_model", param="model")


def _only(targets: Sequence[Target]) -> Target:
    if len(targets) == 1:
        return targets[0]
    message = f"`model` is required: there is {_listed(targets)}"
    raise RequestError(message, kind="invalid_request", param="model")


def _with_task(target: Target, task: Task) -> Target:
    if target.model.task == task:
        return target
    message = f"the model `{target.model.id}` is for {target.model.task}, not for {task}"
    raise RequestError(message, kind="invalid_request", param="model")


def _listed(targets: Sequence[Target]) -> str:
    return " and ".join(f"`{target.model.id}`" for target in targets) or "no model here"
