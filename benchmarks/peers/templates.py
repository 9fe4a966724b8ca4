"""cookiecutter and copier, made to render the very tree that flashgen built: one variable, the same files.

Neither validates a spec, computes a value or keeps a record, so this is their best case.
"""

import json
import sys
from pathlib import Path

BRACES = ("{{", "}}", "{%", "%}", "{#", "#}")


def cookiecutter_template(tree: Path, template: Path, out: Path) -> list[str]:
    """Writes a cookiecutter template of `tree` to `template`; gives the command that renders it to `out`."""
    _write_templates(tree, template / "{{ cookiecutter.name }}", variable="cookiecutter.name", suffix="")
    (template / "cookiecutter.json").write_text(json.dumps({"name": tree.name}))
    command = str(Path(sys.executable).with_name("cookiecutter"))
    return [command, "--no-input", "--overwrite-if-exists", "-o", str(out), str(template)]


def copier_template(tree: Path, template: Path, out: Path) -> list[str]:
    """Writes a copier template of `tree` to `template`; gives the command that renders it to `out`."""
    _write_templates(tree, template, variable="name", suffix=".jinja")
    (template / "copier.yml").write_text(f"name: {{type: str, default: {tree.name}}}\n_exclude: [copier.yml]\n")
    command = str(Path(sys.executable).with_name("copier"))
    return [command, "copy", "--defaults", "--quiet", "--overwrite", str(template), str(out)]


def _write_templates(tree: Path, folder: Path, *, variable: str, suffix: str) -> None:
    for file in sorted(path for path in tree.rglob("*") if path.is_file()):
        relative = file.relative_to(tree)
        if relative.parts[0] == ".flashgen":
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            _write(folder / relative, file.read_bytes())
            continue
        _write(folder / (str(relative) + suffix), _as_template(text, tree.name, variable).encode())


def _as_template(text: str, name: str, variable: str) -> str:
    """The text with its own braces protected and the project's name as a variable."""
    lines = []
    for line in text.splitlines(keepends=True):
        if any(brace in line for brace in BRACES):
            lines.append("{% raw %}" + line + "{% endraw %}")
        else:
            lines.append(line.replace(name, "{{ " + variable + " }}"))
    return "".join(lines)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
