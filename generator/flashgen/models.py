"""Part of `stages.resolve`: what a model is called, where its weights are, and how it decodes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flashgen import naming
from flashgen.checkpoint_sizes import checkpoint_sizes
from flashgen.checkpoints import Checkpoint
from flashgen.diagnostics import Diagnostic, quote
from flashgen.project_folder import absolute, relative_path
from flashgen.protocols import TEXT_GENERATION, Protocol, task_of_untyped
from flashgen.resolved import ResolvedModel, ResolvedSpeculation
from flashgen.sizing import ResolvedResources
from flashgen.spec import ModelReference, ModelSpec, ProjectSpec, ServerSpec
from flashgen.user_text import UserText
from flashgen.user_values import wrapped
from flashgen.vocabularies import difference

# The longest guess: behind four tokens a fifth is seldom right.
DEFAULT_SPECULATIVE_TOKENS = 4


class ModelResolver:
    """Resolves the models of one spec; `diagnostics` collects what is wrong with folders that it names."""

    def __init__(self, spec: ProjectSpec, project_folder: Path) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._spec = spec
        self._project_folder = project_folder
        self._folder_names: dict[Path, str] = {}
        self._callers_names = Counter(
            name for server in spec.servers for key, model in self._entries(server) for name in _own_names(key, model)
        )

    def of_server(
        self,
        server: ServerSpec,
        server_name: str,
        resources: ResolvedResources,
        protocols: Sequence[Protocol],
        *,
        kv_cache_dtype: str,
        block_size: int,
    ) -> tuple[ResolvedModel, ...]:
        """The models of `server`; the task of one without `type` follows from the `protocols` that reach it."""
        entries = list(self._entries(server))
        ids = self.ids(server)
        untyped_task = task_of_untyped([model.type for _, model in entries], protocols)
        # With one model the server's name means it; with several it would be a guess.
        nickname = server_name if len(entries) == 1 else None
        resolved = (
            self._resolve(key, model, nickname=nickname, ids=ids, resources=resources, untyped_task=untyped_task)
            for key, model in entries
        )
        return tuple(_counted(model, kv_cache_dtype=kv_cache_dtype, block_size=block_size) for model in resolved)

    def ids(self, server: ServerSpec) -> dict[str, UserText]:
        """The ids of a server's models, by the names that `prefetch` and `preload` may have for them."""
        named = [(key, _model_id(key, model)) for key, model in self._entries(server)]
        return {name: UserText(model_id) for key, model_id in named for name in (key, model_id) if name is not None}

    def _entries(self, server: ServerSpec) -> Iterator[tuple[str | None, ModelSpec]]:
        for model in server.models:
            if isinstance(model, ModelSpec):
                yield None, model
            else:
                yield model.slug, self._spec.models[model.slug]

    def _resolve(
        self,
        key: str | None,
        model: ModelSpec,
        *,
        nickname: str | None,
        ids: Mapping[str, UserText],
        resources: ResolvedResources,
        untyped_task: str,
    ) -> ResolvedModel:
        path = local_path(model.uri, self._spec.path)
        checkpoint = self._checked(model, path) if path is not None else None
        is_portable = path is not None and not _is_absolute(model.uri)
        task = model.type or untyped_task
        device = model.device or ("cuda:0" if resources.gpus else "cpu")
        return ResolvedModel(
            id=UserText(_model_id(key, model)),
            aliases=tuple(UserText(name) for name in self._aliases(key, model, nickname)),
            task=task,
            folder=self._folder_name(path) if path is not None else None,
            local_path=UserText(model.uri) if is_portable else None,
            path_from_project=_portable_path(path, self._project_folder) if path and is_portable else None,
            path_on_this_machine=path,
            repository=UserText(model.uri) if path is None else None,
            revision=UserText(model.revision) if model.revision is not None else None,
            dtype=model.dtype or "auto",
            quantization=model.quantization,
            device=device,
            max_context=model.max_context,
            chat_template=UserText(model.chat_template) if model.chat_template is not None else None,
            chat_template_source=_chat_template_source(model, task, checkpoint),
            generation_params={name: wrapped(value) for name, value in model.generation_params.items()},
            prefetch=tuple(ids[name] for name in model.prefetch),
            speculative=self._speculation(key, model, checkpoint, device=device, resources=resources),
            sizes=None,
        )

    def _speculation(
        self,
        key: str | None,
        model: ModelSpec,
        checkpoint: Checkpoint | None,
        *,
        device: str,
        resources: ResolvedResources,
    ) -> ResolvedSpeculation | None:
        if model.speculative is None:
            return None
        drafts = []
        for reference in model.speculative.models:
            # Where the model that it guesses for is; what is for callers stays behind.
            draft = self._spec.models[reference.slug]._replace(
                device=device, max_context=model.max_context, aliases=(), prefetch=()
            )
            resolved = self._resolve(
                reference.slug, draft, nickname=None, ids={}, resources=resources, untyped_task=TEXT_GENERATION
            )
            self._check_tokens(reference, resolved, _model_id(key, model), checkpoint)
            drafts.append(resolved)
        tokens = model.speculative.tokens
        return ResolvedSpeculation(
            method=model.speculative.method,
            num_tokens=tokens if tokens is not None else DEFAULT_SPECULATIVE_TOKENS,
            drafts=tuple(drafts),
        )

    def _check_tokens(
        self, reference: ModelReference, draft: ResolvedModel, model_id: str, checkpoint: Checkpoint | None
    ) -> None:
        """Of the model that guesses and of the other one, as far as both are here."""
        path = draft.path_on_this_machine
        if checkpoint is None or path is None or path == checkpoint.folder:
            return
        found = difference(Checkpoint(path), checkpoint)
        if found is not None:
            message = f"{quote(reference.slug)} cannot guess for {quote(model_id)}: {found}"
            hint = "a model that guesses has the tokenizer of the other one: a smaller model of the same family"
            self.diagnostics.append(Diagnostic(code="FG402", message=message, place=reference.place, hint=hint))

    def _aliases(self, key: str | None, model: ModelSpec, nickname: str | None) -> list[str]:
        """Other names that callers may use: those of the spec, then the uri and the server's name where they are one
        model's alone."""
        own = _own_names(key, model)
        names = [*model.aliases, *(name for name in own if self._callers_names[name] == 1)]
        if nickname is not None and (nickname in own or not self._callers_names[nickname]):
            names.append(nickname)
        return [name for name in dict.fromkeys(names) if name != _model_id(key, model)]

    def _checked(self, model: ModelSpec, path: Path) -> Checkpoint:
        checkpoint = Checkpoint(path)
        if checkpoint.problem:
            self.diagnostics.append(
                Diagnostic(
                    code="FG400",
                    message=f"no model can be loaded from {quote(model.uri)}: {checkpoint.problem}",
                    place=model.place,
                    hint="a model's folder holds `config.json`, its tokenizer and `*.safetensors` files; "
                    "relative paths start at the spec's folder",
                )
            )
        return checkpoint

    def _folder_name(self, path: Path) -> str:
        """A slug of the folder's name, another one for each folder."""
        if path not in self._folder_names:
            slug = naming.dns_label(path.name) or "model"
            taken = set(self._folder_names.values())
            numbered = (f"{slug}-{number}" for number in range(2, len(taken) + 3))
            self._folder_names[path] = slug if slug not in taken else next(n for n in numbered if n not in taken)
        return self._folder_names[path]


def _counted(model: ResolvedModel, *, kv_cache_dtype: str, block_size: int) -> ResolvedModel:
    """The model and those that guess for it with their sizes, where their files are here."""
    if model.speculative is not None:
        drafts = (
            _counted(draft, kv_cache_dtype=kv_cache_dtype, block_size=block_size) for draft in model.speculative.drafts
        )
        model = model._replace(speculative=model.speculative._replace(drafts=tuple(drafts)))
    if model.path_on_this_machine is None:
        return model
    sizes = checkpoint_sizes(
        Checkpoint(model.path_on_this_machine),
        dtype=model.dtype,
        quantization=model.quantization,
        is_on_card=model.device != "cpu",
        kv_cache_dtype=kv_cache_dtype,
        max_context=model.max_context,
        block_size=block_size,
    )
    return model._replace(sizes=sizes)


def local_path(uri: str, spec_path: Path) -> Path | None:
    """The absolute folder that a uri means, or `None` for a model from the hub."""
    plain = uri.removeprefix("file://").removeprefix("file:")
    is_hub_id = plain == uri and uri.count("/") == 1 and not uri.startswith((".", "/", "~"))
    return None if is_hub_id else absolute(spec_path.parent / plain)


def _is_absolute(uri: str) -> bool:
    return uri.removeprefix("file://").removeprefix("file:").startswith("/")


def _model_id(key: str | None, model: ModelSpec) -> str:
    if model.name is not None:
        return model.name
    if key is not None:
        return key
    return model.uri if local_path(model.uri, Path()) is None else naming.last_part(model.uri)


def _own_names(key: str | None, model: ModelSpec) -> list[str]:
    """Every name that means this model without being listed as an alias; an absolute path is none of them."""
    names = [_model_id(key, model), key, None if _is_absolute(model.uri) else model.uri]
    return list(dict.fromkeys(name for name in names if name is not None))


def _portable_path(path: Path, project_folder: Path) -> UserText:
    return UserText(relative_path(path, project_folder))


def _chat_template_source(model: ModelSpec, task: str, checkpoint: Checkpoint | None) -> str:
    if model.chat_template is not None:
        return "spec"
    if task != TEXT_GENERATION:
        return "none"
    return checkpoint.chat_template_source if checkpoint is not None else "unknown"
