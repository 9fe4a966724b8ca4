"""Decides for each file what a build does with it, from three contents: base B, disk D and new N.

B is what the last build wrote, D what lies in the project, N what this build wants. Nothing here touches the disk, and
nothing is merged yet: where a user's edit meets new contents there is a conflict, and the build stops.
"""

from typing import NamedTuple

from flashgen.record import RecordedFile, base_form
from flashgen.rendered import RenderedFile
from flashgen.write_report import FileChange, Word

EDITED = "edited, and the spec now asks for other contents"
IN_THE_WAY = "in the way: flashgen did not write it"


class Found(NamedTuple):
    """What the record and the disk hold for one file; contents in their base form, `None` where there are none."""

    recorded: RecordedFile | None
    base: bytes | None
    disk: bytes | None

    # For a file whose path changes: what lies at the new one.
    disk_at_new_path: bytes | None = None

    # Whether the user deleted it, now or before an earlier build.
    is_deleted: bool = False


class Decision(NamedTuple):
    """What happens to one file."""

    path: str

    # `None`: nothing to say about it.
    word: Word | None = None
    note: str = ""

    # Write N to `path`.
    writes: bool = False

    # The file leaves this path: to `path` with the user's contents, unless N is written or lies there already.
    old_path: str | None = None

    # Remove the file at `path`.
    removes: bool = False

    # The record keeps N as the base.
    new_base: bool = False
    stays_recorded: bool = True
    conflict: str | None = None

    @property
    def change(self) -> FileChange | None:
        """Its line in the report."""
        return FileChange(self.word, self.path, self.note) if self.word is not None else None


def decide(new: RenderedFile, found: Found) -> Decision:
    """For a file that this build produces."""
    wanted = base_form(new.content, is_binary=new.is_binary)
    if found.recorded is None:
        return _decide_unknown(new, found, wanted)
    if found.recorded.path != new.path:
        return _decide_moved(new, found, wanted, found.recorded.path)
    if found.disk is None:
        return _decide_absent(new, found)
    if new.owner == "once":
        return Decision(path=new.path)
    if found.disk == wanted:
        return _decide_equal(new, found, found.recorded)
    if found.disk == found.base:
        return Decision(path=new.path, word="update", writes=True, new_base=True)
    if wanted == found.base:
        return Decision(path=new.path, word="keep", note="edited")
    return Decision(path=new.path, conflict=EDITED)


def decide_gone(found: Found, recorded: RecordedFile) -> Decision:
    """For a file that the last build produced and this one does not."""
    if found.disk is None:
        return Decision(path=recorded.path, stays_recorded=False)
    if found.disk == found.base:
        return Decision(path=recorded.path, word="remove", removes=True, stays_recorded=False)
    return Decision(
        path=recorded.path, word="orphan", note="no longer produced; yours, because you edited it", stays_recorded=False
    )


def _decide_unknown(new: RenderedFile, found: Found, wanted: bytes) -> Decision:
    if found.disk is None:
        return Decision(path=new.path, word="create", writes=True, new_base=True)
    if found.disk == wanted:
        return Decision(path=new.path, word="adopt", new_base=True)
    if new.owner == "once":
        return Decision(path=new.path, word="keep", note="yours")
    return Decision(path=new.path, conflict=IN_THE_WAY)


def _decide_absent(new: RenderedFile, found: Found) -> Decision:
    if found.is_deleted:
        return Decision(path=new.path, word="deleted", note="you deleted it")
    return Decision(path=new.path, word="create", writes=True, new_base=True)


def _decide_moved(new: RenderedFile, found: Found, wanted: bytes, old_path: str) -> Decision:
    if found.disk_at_new_path == wanted:
        # An interrupted build wrote it already.
        is_rest = found.disk is not None and found.disk == found.base
        return Decision(path=new.path, word="adopt", new_base=True, old_path=old_path if is_rest else None)
    if found.disk_at_new_path is not None:
        return Decision(path=new.path, conflict=IN_THE_WAY)
    if found.disk is None:
        return _decide_absent(new, found)
    is_edited = found.disk != found.base
    if is_edited and new.owner == "managed" and wanted not in (found.base, found.disk):
        return Decision(path=new.path, conflict=EDITED)
    # A `once` file keeps its contents, as an edited one does; its old base goes with it.
    keeps_contents = is_edited or new.owner == "once"
    return Decision(
        path=new.path,
        word="move",
        note=f"from {old_path}",
        old_path=old_path,
        writes=not keeps_contents,
        new_base=new.owner == "managed",
    )


def _decide_equal(new: RenderedFile, found: Found, recorded: RecordedFile) -> Decision:
    if new.mode != recorded.mode:
        return Decision(path=new.path, word="update", note=f"mode {new.mode:04o}", writes=True, new_base=True)
    if found.base != found.disk:
        # An interrupted build, or the user came to the same text: only the base is refreshed.
        return Decision(path=new.path, word="adopt", new_base=True)
    return Decision(path=new.path)
