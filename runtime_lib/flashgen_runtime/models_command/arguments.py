"""The verbs of `models` and their arguments."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

# What `prepare --for` takes: kernels of all processors read the same panels.
PROCESSORS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "neon")
GENERIC = "generic"
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4")

# Set by `flashgen models`, so that usage lines say what was typed.
_PROGRAM_VARIABLE = "FLASHGEN_PROGRAM"

_MODEL_HELP = "a hub id, ./folder, s3://, gs:// or https:// address, or a name that `list` shows"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `module` and `function` say what to call with them."""
    program = os.environ.get(_PROGRAM_VARIABLE) or "python -m flashgen_runtime models"
    parser = argparse.ArgumentParser(prog=program, description="Models on this machine's disk, and in its workers.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_pull, _list, _info, _verify, _prepare, _rm, _load, _unload, _run):
        add(verbs)
    return parser.parse_args(arguments)


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _verb(verbs: Verbs, name: str, module: str, text: str, *, has_store: bool = True) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    parser.set_defaults(module=module, function=name)
    if has_store:
        help_text = "the store's folder; default: FLASHGEN_STORE, else ~/.cache/flashgen/store"
        parser.add_argument("--store", metavar="DIR", type=Path, help=help_text)
    return parser


def _pull(verbs: Verbs) -> None:
    parser = _verb(verbs, "pull", "pull", "fetch a model into the store, and prepare it for this processor")
    parser.add_argument("model", metavar="URI", help="a hub id, ./folder, s3://, gs:// or https:// address")
    _add_revision(parser)
    _add_precision(parser)
    parser.add_argument("--no-prepare", action="store_true", help="only fetch; the first load prepares")


def _list(verbs: Verbs) -> None:
    parser = _verb(verbs, "list", "show", "show all models of the store, or of a running worker")
    parser.add_argument("--url", metavar="URL", help="a worker's operations port: shows which models are in its memory")
    _add_json(parser)


def _info(verbs: Verbs) -> None:
    parser = _verb(verbs, "info", "show", "show one model's files, digests and prepared files")
    _add_model(parser)
    _add_json(parser)


def _verify(verbs: Verbs) -> None:
    parser = _verb(verbs, "verify", "verify", "read every file and compare it with what was pulled or prepared")
    parser.add_argument("models", metavar="MODEL", nargs="*", help=f"{_MODEL_HELP}; default: all models")


def _prepare(verbs: Verbs) -> None:
    parser = _verb(verbs, "prepare", "prepare", "write a model's weights as kernels want them")
    _add_model(parser)
    _add_precision(parser)
    parser.add_argument(
        "--for",
        dest="processor",
        choices=(*PROCESSORS, GENERIC),
        help="all kernels read the same files; `generic` keeps rows and names for other readers; default: this machine",
    )


def _rm(verbs: Verbs) -> None:
    parser = _verb(verbs, "rm", "rm", "remove models, what was prepared from them, or what unfinished pulls have left")
    parser.add_argument("models", metavar="MODEL", nargs="*", help=f"{_MODEL_HELP}; all of its revisions")
    parser.add_argument("--revision", metavar="REVISION", help="only this commit, branch or tag")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prepared", action="store_true", help="only prepared files; without a model, of all models")
    what.add_argument("--leftovers", action="store_true", help="what unfinished pulls have left")


def _load(verbs: Verbs) -> None:
    _add_worker(_verb(verbs, "load", "worker", "load a model of a running worker", has_store=False))


def _unload(verbs: Verbs) -> None:
    _add_worker(_verb(verbs, "unload", "worker", "unload a model of a running worker", has_store=False))


def _run(verbs: Verbs) -> None:
    parser = _verb(verbs, "run", "run", "load a model, pulled if need be, and stream an answer")
    _add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="`-`: what comes on stdin")
    _add_revision(parser)
    _add_precision(parser)
    parser.add_argument("--max-tokens", metavar="N", type=_positive, help="of the answer; default: 256", default=256)
    parser.add_argument("--temperature", metavar="T", type=float, help="0: the likeliest token always")
    parser.add_argument("--seed", metavar="N", type=int)
    parser.add_argument("--raw", action="store_true", help="continue the prompt itself, without a chat template")
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu (the default), cuda or cuda:N")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)


def _add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REVISION", help="of the hub: a commit, branch or tag; default: main")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="of linear layers; default: none")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: the checkpoint's own")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's id or an alias of it")
    parser.add_argument("--url", metavar="URL", required=True, help="the worker's operations port: http://host:7500")
    parser.add_argument("--timeout", metavar="SECONDS", type=_positive, default=600, help="default: 600")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
