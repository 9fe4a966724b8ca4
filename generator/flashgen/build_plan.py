"""What a build will write: which blueprint file, with which values, where to, and whose it is."""

from pathlib import Path
from typing import Literal, NamedTuple

from flashgen.resolved import ResolvedProject

# managed: flashgen updates it; once: written one time, then the user's.
Owner = Literal["managed", "once"]


class PlannedFile(NamedTuple):
    """One output: rendered from a template or made by a producer, exactly one of the two."""

    # Template or producer plus the loop item's name: stays the same when the path changes.
    file_id: str

    # Relative to the project, with "/".
    path: str
    owner: Owner
    mode: int

    # Values of this output beside the project: the loop variable, if any.
    context: dict[str, object]

    # Relative to the blueprint's template folder.
    template: str | None = None

    # A name in `producers.PRODUCERS`.
    producer: str | None = None


class BuildPlan(NamedTuple):
    """Everything that `stages.render` needs."""

    # The folder that templates are relative to: `{{cookiecutter.name}}` of a blueprint; macros lie in `../templates`.
    template_folder: Path
    project: ResolvedProject
    files: tuple[PlannedFile, ...]
