"""Builds the kernels' libraries before a wheel or an editable install is made, where they are absent or out of date."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path(__file__).parent / "flashgen_runtime" / "kernels" / "build.py"


class KernelsBuildHook(BuildHookInterface[Any]):
    """Leaves `flashgen_runtime/kernels/lib/` complete; pyproject.toml lists it among the artifacts."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 # hatchling's signature
        """Runs before the files of the wheel are collected."""
        build = _load_build()
        if build.is_current():
            return
        if not build.has_compiler():
            raise RuntimeError(
                "the kernels' libraries are absent or older than their sources, and the compiler is not installed: "
                "`pip install ziglang==0.17.1`, or build with isolation"
            )
        self.app.display_info("building the kernels for x86-64 and arm64 (a minute)")
        build.build_all()


def _load_build() -> ModuleType:
    """The module by its path: the package is not installed yet."""
    spec = importlib.util.spec_from_file_location("flashgen_kernels_build", _BUILD)
    assert spec is not None, "the file lies beside this one"
    assert spec.loader is not None, "it is a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
