"""What `flashgen run` is asked to run: a spec, a folder with a model, or a model on the hub."""

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from flashgen import naming
from flashgen.checkpoints import Checkpoint
from flashgen.errors import UsageError
from flashgen.project_folder import absolute
from flashgen.protocols import TEXT_GENERATION
from flashgen.starter_spec import StarterResources

_SPEC_NAME = "flashgen.yaml"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# A worker's share of the machine's memory, the rest being the system's and the API server's. A model that does not fit
# is refused.
_MEMORY_SHARE = 0.75


class SpecTarget(NamedTuple):
    """A spec that exists."""

    path: Path

    @property
    def key(self) -> str:
        """A name for its folder in the cache, another one for each spec."""
        return _key(self.path.parent.name, str(absolute(self.path)))


class ModelTarget(NamedTuple):
    """A model for which a spec is written."""

    uri: str
    task: str

    @property
    def name(self) -> str:
        """The service's name."""
        return naming.dns_label(naming.last_part(self.uri)) or "model"

    @property
    def key(self) -> str:
        """As for a spec."""
        return _key(self.name, self.uri)


def parse_target(text: str | None) -> SpecTarget | ModelTarget:
    """What the user means; raises `UsageError` with the three ways to say it."""
    path = Path(text or _SPEC_NAME)
    if path.is_file() or text is None:
        return SpecTarget(path)
    if path.is_dir():
        return _folder_target(path)
    if _HUB_ID.fullmatch(text):
        return ModelTarget(text, TEXT_GENERATION)
    raise UsageError(
        f"`{text}` is no file, no folder and no model's name",
        hint="name a spec (`flashgen.yaml`), a folder with a model (`./model`), or a model on the hub (`owner/name`)",
    )


def machine_resources() -> StarterResources:
    """What one worker may take of this machine."""
    memory = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY_SHARE)
    return StarterResources(
        cpus=os.cpu_count() or 1,
        memory=f"{max(1, memory // 2**30)}GiB",
        gpus=int(Path("/dev/nvidia0").exists()),
    )


def _folder_target(path: Path) -> SpecTarget | ModelTarget:
    if (path / _SPEC_NAME).is_file():
        return SpecTarget(path / _SPEC_NAME)
    checkpoint = Checkpoint(path)
    if checkpoint.problem:
        raise UsageError(
            f"`{path}` holds neither a spec nor a model: {checkpoint.problem}",
            hint=f"a project has a `{_SPEC_NAME}`; a model has `config.json`, its tokenizer and `*.safetensors` files",
        )
    if checkpoint.task is None:
        raise UsageError(
            f"the model in `{path}` is of a kind that is not served yet: see `architectures` in its `config.json`",
            hint="text generation (`…ForCausalLM`) and embeddings (`BertModel` and its like) are served",
        )
    return ModelTarget(str(absolute(path)), checkpoint.task)


def _key(name: str, identity: str) -> str:
    return f"{naming.dns_label(name) or 'project'}-{sha256(identity.encode()).hexdigest()[:8]}"
