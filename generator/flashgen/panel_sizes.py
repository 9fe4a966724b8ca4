"""Bytes of a linear layer as the runtime's kernels keep it: panels of 32 outputs, in words of 32 bit.

The same arithmetic as in `kernels/sources/panel.h` of the runtime; a test compares the two.
"""

WIDTH = 32
WORD_BYTES = 4

# Values in one word, by format.
VALUES_OF_WORD = {"float32": 1, "float16": 2, "bfloat16": 2, "int8": 4, "int4": 8}

# Values of one column that share a scale in int4.
GROUP_SIZE = 64

_FLOAT_BYTES = 4


def linear_bytes(
    weight_format: str,
    in_features: int,
    out_features: int,
    *,
    has_bias: bool = False,
    group_size: int = GROUP_SIZE,
    has_offsets: bool = False,
) -> int:
    """Values, scales and bias of a layer; several layers of the same input are one, their outputs together.

    Args:
        weight_format: one of `VALUES_OF_WORD`.
        in_features: of the matrix.
        out_features: of the matrix.
        has_bias: float32, one for each output.
        group_size: values that share a scale in int4.
        has_offsets: whether groups in int4 have an offset beside the scale.
    """
    num_panels = _divide_up(out_features, WIDTH)
    words = _divide_up(in_features, VALUES_OF_WORD[weight_format])
    scales = WIDTH if weight_format == "int8" else 0
    if weight_format == "int4":
        groups = _divide_up(in_features, group_size)
        words = groups * group_size // VALUES_OF_WORD["int4"]
        scales = groups * WIDTH * (2 if has_offsets else 1)
    bias_bytes = out_features * _FLOAT_BYTES if has_bias else 0
    return num_panels * (words * WIDTH * WORD_BYTES + scales * _FLOAT_BYTES) + bias_bytes


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)
