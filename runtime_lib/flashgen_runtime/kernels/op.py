"""One operation of a program as `sources/program.cpp` reads it: `fg_op` in `sources/kernels.h`."""

from ctypes import Structure, c_float, c_int64, c_void_p
from enum import IntEnum


class OpKind(IntEnum):
    """`fg_op_kind` in `sources/kernels.h`."""

    EMBED = 0
    EMBED_POSITIONS = 1
    EMBED_PANELS = 2
    SELECT_ROWS = 3
    RMS_NORM = 4
    LAYER_NORM = 5
    LINEAR = 6
    ROPE_ANGLES = 7
    ROPE_AND_STORE = 8
    ATTENTION = 9
    ACTIVATE = 10
    GATED_ACTIVATION = 11


class COp(Structure):
    """`fg_op`: one operation."""

    _fields_ = (
        ("kind", c_int64),
        ("is_sampled", c_int64),
        ("is_added", c_int64),
        ("mode", c_int64),
        ("size", c_int64),
        ("x_stride", c_int64),
        ("out_stride", c_int64),
        ("x", c_void_p),
        ("out", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("options", c_void_p),
        ("layer", c_void_p),
        ("factor", c_float),
    )
