"""The built kernels, loaded through ctypes: `sources/kernels.h` in Python.

Three environment variables decide, each for the whole process: `FLASHGEN_KERNELS=off` leaves the kernels out, so that
their torch twins do the work; `FLASHGEN_KERNELS_LIBRARY` names another library file; `FLASHGEN_KERNELS_ISA` names the
instruction set instead of the best one.
"""

import ctypes
import logging
import os
import platform
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)

# What `fg_interface_version` of a fitting library gives.
INTERFACE_VERSION = 2

LIBRARY_FOLDER = Path(__file__).parent / "lib"

# Names of machines as `platform.machine` gives them, and as the libraries carry them.
_PLATFORMS = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class CLinear(ctypes.Structure):
    """`fg_linear`: one linear layer."""

    _fields_ = (
        ("format", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("group_size", c_int64),
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("layout", c_int64),
        ("offsets", c_void_p),
    )


class CKVLayer(ctypes.Structure):
    """`fg_kv_layer`: keys and values of one attention layer."""

    _fields_ = (
        ("format", c_int64),
        ("num_heads", c_int64),
        ("key_size", c_int64),
        ("value_size", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
    )


class CBatch(ctypes.Structure):
    """`fg_batch`: one step."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_sequences", c_int64),
        ("block_size", c_int64),
        ("block_table_stride", c_int64),
        ("num_sampled", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("starts", c_void_p),
        ("kv_lens", c_void_p),
        ("block_tables", c_void_p),
        ("sampled_rows", c_void_p),
    )


class CAttention(ctypes.Structure):
    """`fg_attention`: what attention needs beside its inputs."""

    _fields_ = (
        ("num_heads", c_int64),
        ("scaling", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("is_causal", c_int64),
        ("sinks", c_void_p),
    )


class CRopeStore(ctypes.Structure):
    """`fg_rope_store`: norms and rotation before keys and values are stored."""

    _fields_ = (
        ("num_heads", c_int64),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("norm_eps", c_float),
        ("norm_offset", c_float),
        ("rope_count", c_int64),
    )


class CSamplingRow(ctypes.Structure):
    """`fg_sampling_row`: how one row's token is chosen, and the result."""

    _fields_ = (
        ("num_counted", c_int64),
        ("counted_ids", c_void_p),
        ("counts", c_void_p),
        ("num_biased", c_int64),
        ("biased_ids", c_void_p),
        ("biases", c_void_p),
        ("mask", c_void_p),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("inverse_temperature", c_float),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("typical_p", c_double),
        ("uniform", c_double),
        ("log_min_p", c_float),
        ("logprob", c_float),
        ("has_logprobs", c_int64),
        ("num_best", c_int64),
        ("best_ids", c_void_p),
        ("best_logprobs", c_void_p),
        ("token_id", c_int64),
    )


_I = c_int64
_F = c_float
_P = c_void_p

# Name in `kernels.h` without `fg_`: the result's type, the arguments' types.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # Library.
    "interface_version": (_I,),
    "available_isas": (c_char_p,),
    "current_isa": (c_char_p,),
    "select_isa": (_I, c_char_p),
    "set_num_threads": (None, _I),
    "num_threads": (_I,),
    # linear.cpp
    "linear_panel_bytes": (_I, _I, _I, _I, _I),
    "linear_num_scales": (_I, _I, _I, _I, _I),
    "linear_pack": (None, _I, _I, _P, _I, _I, _I, _P, _P),
    "linear_unpack_row": (None, POINTER(CLinear), _I, _P),
    "linear_forward": (None, POINTER(CLinear), _P, _I, _P, _I, _I, _I),
    # embedding.cpp
    "embed": (None, _P, _I, _I, _P, _I, _F, _P, _I, _I),
    # norm.cpp
    "rms_norm": (None, _P, _I, _P, _F, _F, _P, _I, _I, _I),
    "layer_norm": (None, _P, _I, _P, _P, _F, _P, _I, _I, _I),
    # activation.cpp
    "gated_activation": (None, _I, _P, _I, _P, _I, _I, _I),
    "activate": (None, _I, _P, _I, _P, _I, _I, _I),
    # rope_store.cpp
    "rope_angles": (None, _P, _P, _I, _F, _P, _I),
    "rope_and_store": (None, POINTER(CRopeStore), _P, _I, _P, POINTER(CKVLayer), _P, _I),
    "store_kv": (None, _P, _I, _I, _P, _I, _I, POINTER(CKVLayer), _P, _I),
    "kv_tile_bytes": (_I, _I, _I, _I),
    "copy_blocks": (None, POINTER(CKVLayer), _I, _P, _I),
    # attention.cpp
    "paged_attention": (None, POINTER(CAttention), _P, _I, POINTER(CKVLayer), POINTER(CBatch), _P, _I),
    # sampling.cpp
    "sample": (None, _P, _I, _I, POINTER(CSamplingRow), _I),
    "beam_candidates": (None, _P, _I, _I, POINTER(CSamplingRow), _I),
    # program.cpp
    "program_run": (None, _P, _I, POINTER(CBatch)),
}


class KernelLibrary:
    """The functions of one library file, by their names in `kernels.h` without `fg_`.

    Structs are passed by `ctypes.byref`, tensors by `address`. A call lets other Python threads run.
    """

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when the file cannot be loaded or has another interface."""
        self.path = path
        self._library = ctypes.CDLL(str(path))
        if (version := self.interface_version()) != INTERFACE_VERSION:
            raise OSError(f"{path} has interface {version}, expected {INTERFACE_VERSION}")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _SIGNATURES:
            raise AttributeError(f"the kernels have no function `{name}`")
        function: Callable[..., Any] = getattr(self._library, f"fg_{name}")
        function.restype, *function.argtypes = _SIGNATURES[name]  # type: ignore[attr-defined] # ctypes' own attributes
        self.__dict__[name] = function
        return function


@cache
def library() -> KernelLibrary | None:
    """The kernels for this processor; None, with the reason in the log, where torch must do the work."""
    if os.environ.get("FLASHGEN_KERNELS") == "off":
        log.info("kernels are off", extra=fields(reason="FLASHGEN_KERNELS=off"))
        return None
    path = library_path(platform.machine())
    if path is None:
        log.warning("no kernels for this machine: torch does the work", extra=fields(machine=platform.machine()))
        return None
    try:
        kernels = KernelLibrary(path)
    except OSError as error:
        log.warning("kernels not loaded: torch does the work", extra=fields(reason=error))
        return None
    names = _isas(kernels)
    if not names:
        log.warning("no kernels for this processor: torch does the work", extra=fields(library=path))
        return None
    _select(kernels, os.environ.get("FLASHGEN_KERNELS_ISA") or names[0])
    kernels.set_num_threads(torch.get_num_threads())
    return kernels


def library_path(machine: str) -> Path | None:
    """Where the library for a machine lies; it need not exist. None for machines that have none."""
    if override := os.environ.get("FLASHGEN_KERNELS_LIBRARY"):
        return Path(override)
    name = _PLATFORMS.get(machine)
    return LIBRARY_FOLDER / f"libflashgen_kernels-{name}.so" if name else None


def isas() -> list[str]:
    """Instruction sets that this processor runs, best first; empty without kernels.

    The last one may be `amx`, which has never run on such a processor: it is taken only where it is named.
    """
    kernels = library()
    return _isas(kernels) if kernels else []


def current_isa() -> str | None:
    """The instruction set in use; None without kernels."""
    kernels = library()
    return str(kernels.current_isa().decode()) if kernels else None


def rounds_to_bf16() -> bool:
    """Whether the kernels of this processor round to bfloat16 what they multiply with bfloat16: it has dot products."""
    return current_isa() in ("avx512_bf16", "amx")


def select_isa(name: str) -> None:
    """Takes another instruction set, for all calls that follow. Raises `ValueError` for one that is not in `isas()`."""
    kernels = library()
    if kernels is None:
        raise ValueError(f"no kernels are loaded, so `{name}` cannot be chosen")
    _select(kernels, name)


def set_num_threads(count: int) -> None:
    """Threads that a kernel uses, the caller among them. At load: as many as torch uses."""
    if count < 1:
        raise ValueError(f"expected at least one thread, found {count}")
    if kernels := library():
        kernels.set_num_threads(count)


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's first value lies; None, the null pointer, for none. The caller keeps the tensor alive."""
    return None if tensor is None else tensor.data_ptr()


def _isas(kernels: KernelLibrary) -> list[str]:
    return [name for name in kernels.available_isas().decode().split(",") if name]


def _select(kernels: KernelLibrary, name: str) -> None:
    if kernels.select_isa(name.encode()) != 0:
        raise ValueError(f"`{name}` is none of this processor's instruction sets: {', '.join(_isas(kernels))}")
