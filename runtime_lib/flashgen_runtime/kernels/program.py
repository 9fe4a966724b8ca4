"""A step of a model as a list of operations: built once, run by one call, so that no Python runs for each layer.

    program = Program(max_tokens=512)
    normed = program.rms_norm(hidden, weight, eps=1e-6, out=program.buffer(1024))
    program.linear(normed, panels, out=program.buffer(4096))
    program.run(batch)

With kernels the list lies in memory as `sources/program.cpp` reads it. Without them the same operations run one after
the other on their torch twins.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from ctypes import Array, addressof, byref, sizeof
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch

from flashgen_runtime.kernels import operations
from flashgen_runtime.kernels.kv_layer import KVLayer
from flashgen_runtime.kernels.library import CAttention, CRopeStore, address, library
from flashgen_runtime.kernels.op import COp, OpKind
from flashgen_runtime.kernels.operations import TABLE_FORMATS, Activation
from flashgen_runtime.kernels.paged_attention import AttentionBatch, paged_attention
from flashgen_runtime.kernels.panels import Layout, Panels, linear, unpack


@dataclass(frozen=True, slots=True)
class Rows:
    """Activations: the first rows of a buffer, one for each token of the batch or for each sampled row."""

    # [max_tokens, size], float32, values of a row side by side.
    values: torch.Tensor
    is_sampled: bool = False


class ProgramBatch(AttentionBatch, Protocol):
    """The step that a program runs on. Tensors are int64, contiguous."""

    @property
    def input_ids(self) -> torch.Tensor:
        """[T]"""

    @property
    def positions(self) -> torch.Tensor:
        """[T]"""

    @property
    def slot_mapping(self) -> torch.Tensor:
        """[T]: where keys and values go."""

    @property
    def sample_rows(self) -> torch.Tensor:
        """[R]"""


# Does an operation in torch: the batch, and how many rows it has.
Twin = Callable[[Any, int], None]


@dataclass(frozen=True, slots=True)
class _Op:
    """One operation in both forms."""

    # By which `profile` sums.
    name: str
    is_sampled: bool
    struct: COp
    twin: Twin

    # Tensors and structs that `struct` points to.
    kept: tuple[Any, ...]


class Program:
    """Operations over the rows of a batch; each method adds one and returns what it computes.

    `out` is where an operation writes, a buffer or a part of its columns; operations may share buffers where the one's
    result is used up. A batch may have at most `max_tokens` tokens. Results are valid until the next run.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._ops: list[_Op] = []
        self._structs: Array[COp] = (COp * 0)()

    def buffer(self, size: int) -> torch.Tensor:
        """[max_tokens, size], float32, uninitialised: rows that no batch reaches never become memory."""
        return torch.empty(self._max_tokens, size)

    @property
    def num_ops(self) -> int:
        """Operations so far."""
        return len(self._ops)

    def run(self, batch: ProgramBatch, first: int = 0, last: int | None = None) -> None:
        """Does the operations `first` : `last` in order, all of them by default."""
        assert len(batch.input_ids) <= self._max_tokens, "the scheduler's budget is the program's"
        if (kernels := library()) is None:
            for op in self._ops[first:last]:
                _run_twin(op, batch)
            return
        if len(self._structs) != len(self._ops):
            self._structs = (COp * len(self._ops))(*(op.struct for op in self._ops))
        count = (len(self._ops) if last is None else last) - first
        kernels.program_run(addressof(self._structs) + first * sizeof(COp), count, byref(batch.c_struct))

    def profile(self, batch: ProgramBatch) -> dict[str, float]:
        """As `run`, one operation at a time: seconds that each kind of operation takes, by its name."""
        self.run(batch)
        seconds: dict[str, float] = defaultdict(float)
        for index, op in enumerate(self._ops):
            start = perf_counter()
            if (kernels := library()) is None:
                _run_twin(op, batch)
            else:
                kernels.program_run(addressof(self._structs) + index * sizeof(COp), 1, byref(batch.c_struct))
            seconds[op.name] += perf_counter() - start
        return dict(seconds)

    def embed(self, table: torch.Tensor | Panels, *, out: torch.Tensor, scale: float = 1.0) -> Rows:
        """scale * the row of each token id; table [V, K] in float32, float16 or bfloat16, or panels of that."""
        if isinstance(table, Panels) and table.layout is Layout.PANELS:
            return self._embed_panels(table, out, scale)
        table = table.data if isinstance(table, Panels) else table
        return self._embed(OpKind.EMBED, table, out, scale=scale, ids=lambda batch: batch.input_ids)

    def add_positions(self, x: Rows, table: torch.Tensor) -> Rows:
        """Adds the row of each position to x, in place: table [positions, K]."""
        assert not x.is_sampled, "positions are those of tokens"
        return self._embed(OpKind.EMBED_POSITIONS, table, x.values, is_added=True, ids=lambda batch: batch.positions)

    def select_sampled(self, x: Rows) -> Rows:
        """A copy of the sampled rows of x."""
        assert not x.is_sampled, "they are selected already"
        out = Rows(self.buffer(x.values.shape[1]), is_sampled=True)

        def twin(batch: ProgramBatch, num_rows: int) -> None:
            out.values[:num_rows] = x.values[batch.sample_rows]

        return self._add("select", OpKind.SELECT_ROWS, x, out, twin, size=x.values.shape[1])

    def rms_norm(self, x: Rows, weight: torch.Tensor, *, eps: float, out: torch.Tensor) -> Rows:
        """As `operations.rms_norm`."""

        def twin(_batch: ProgramBatch, num_rows: int) -> None:
            out[:num_rows] = operations.rms_norm(x.values[:num_rows], weight, eps=eps)

        fields = {"size": len(weight), "weight": address(weight), "factor": eps}
        return self._add("norm", OpKind.RMS_NORM, x, Rows(out, x.is_sampled), twin, kept=(weight,), **fields)

    def layer_norm(self, x: Rows, weight: torch.Tensor, bias: torch.Tensor, *, eps: float, out: torch.Tensor) -> Rows:
        """As `operations.layer_norm`."""

        def twin(_batch: ProgramBatch, num_rows: int) -> None:
            out[:num_rows] = operations.layer_norm(x.values[:num_rows], weight, bias, eps=eps)

        fields = {"size": len(weight), "weight": address(weight), "bias": address(bias), "factor": eps}
        return self._add("norm", OpKind.LAYER_NORM, x, Rows(out, x.is_sampled), twin, kept=(weight, bias), **fields)

    def linear(
        self, x: Rows, panels: Panels, *, out: torch.Tensor, is_added: bool = False, name: str = "linear"
    ) -> Rows:
        """As `panels.linear`.

        Args:
            x: [.., in_features]
            panels: the layer.
            out: [.., out_features]
            is_added: whether the result is added to what `out` holds.
            name: by which the profile counts it.
        """

        def twin(_batch: ProgramBatch, num_rows: int) -> None:
            linear(x.values[:num_rows], panels, out=out[:num_rows], add=is_added)

        fields = {"is_added": is_added, "weight": addressof(panels.c_struct())}
        return self._add(name, OpKind.LINEAR, x, Rows(out, x.is_sampled), twin, kept=(panels,), **fields)

    def linears(
        self, x: Rows, layers: Sequence[Panels], *, out: torch.Tensor, is_added: bool = False, name: str = "linear"
    ) -> Rows:
        """As `linear` for several layers of the same input: their outputs follow one another in `out`."""
        first = 0
        for panels in layers:
            part = out[:, first : first + panels.out_features]
            self.linear(x, panels, out=part, is_added=is_added, name=name)
            first += panels.out_features
        return Rows(out, x.is_sampled)

    def rope_angles(self, frequencies: torch.Tensor, *, factor: float = 1.0) -> Rows:
        """As `operations.rope_angles`, for the positions of the batch."""
        out = Rows(self.buffer(2 * len(frequencies)))

        def twin(batch: ProgramBatch, num_rows: int) -> None:
            out.values[:num_rows] = operations.rope_angles(batch.positions, frequencies, factor=factor)

        fields = {"size": len(frequencies), "weight": address(frequencies), "factor": factor}
        return self._add("rope", OpKind.ROPE_ANGLES, None, out, twin, kept=(frequencies,), **fields)

    def rope_and_store(
        self,
        projected: Rows,
        layer: KVLayer,
        *,
        num_heads: int,
        angles: Rows | None = None,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> Rows:
        """As `operations.rope_and_store`, in place; returns the queries. Without angles nothing is rotated."""
        num_angles = 0 if angles is None else angles.values.shape[1] // 2
        options = CRopeStore(
            num_heads=num_heads,
            query_norm=address(query_norm),
            key_norm=address(key_norm),
            norm_eps=norm_eps,
            rope_count=num_angles,
        )

        def twin(batch: ProgramBatch, num_rows: int) -> None:
            operations.rope_and_store(
                projected.values[:num_rows],
                torch.empty(num_rows, 0) if angles is None else angles.values[:num_rows],
                layer,
                batch.slot_mapping,
                num_heads=num_heads,
                query_norm=query_norm,
                key_norm=key_norm,
                eps=norm_eps,
            )

        kept = (options, layer, query_norm, key_norm)
        fields = {"options": addressof(options), "layer": addressof(layer.c_struct)}
        self._add("rope and store", OpKind.ROPE_AND_STORE, angles, projected, twin, kept=kept, **fields)
        return Rows(projected.values[:, : num_heads * layer.key_size])

    def attention(
        self,
        queries: Rows,
        layer: KVLayer,
        *,
        num_heads: int,
        scaling: float,
        out: torch.Tensor,
        window: int | None = None,
        is_causal: bool = True,
    ) -> Rows:
        """As `paged_attention`: out [.., num_heads * value_size]."""
        options = CAttention(num_heads=num_heads, scaling=scaling, window=window or 0, is_causal=is_causal)

        def twin(batch: ProgramBatch, num_rows: int) -> None:
            attended = paged_attention(
                queries.values[:num_rows].view(num_rows, num_heads, -1),
                layer,
                batch,
                scaling=scaling,
                window=window,
                is_causal=is_causal,
            )
            out[:num_rows] = attended.flatten(1)

        fields = {"options": addressof(options), "layer": addressof(layer.c_struct)}
        return self._add("attention", OpKind.ATTENTION, queries, Rows(out), twin, kept=(options, layer), **fields)

    def activate(self, x: Rows, activation: Activation, *, out: torch.Tensor) -> Rows:
        """As `operations.activate`."""

        def twin(_batch: ProgramBatch, num_rows: int) -> None:
            out[:num_rows] = operations.activate(x.values[:num_rows], activation)

        return self._add_activation(OpKind.ACTIVATE, x, activation, out, twin)

    def gated_activation(self, x: Rows, activation: Activation, *, out: torch.Tensor) -> Rows:
        """As `operations.gated_activation`: x [.., 2 K], out [.., K]."""

        def twin(_batch: ProgramBatch, num_rows: int) -> None:
            out[:num_rows] = operations.gated_activation(x.values[:num_rows], activation)

        return self._add_activation(OpKind.GATED_ACTIVATION, x, activation, out, twin)

    def _add_activation(self, kind: OpKind, x: Rows, activation: Activation, out: torch.Tensor, twin: Twin) -> Rows:
        rows = Rows(out, x.is_sampled)
        return self._add("activation", kind, x, rows, twin, mode=activation.value, size=out.shape[1])

    def _embed(
        self,
        kind: OpKind,
        table: torch.Tensor,
        out: torch.Tensor,
        *,
        ids: Callable[[ProgramBatch], torch.Tensor],
        scale: float = 1.0,
        is_added: bool = False,
    ) -> Rows:
        def twin(batch: ProgramBatch, num_rows: int) -> None:
            rows = operations.embed(table, ids(batch), scale=scale)
            out[:num_rows] = out[:num_rows] + rows if is_added else rows

        fields = {"mode": TABLE_FORMATS[table.dtype], "size": table.shape[1], "weight": address(table)}
        return self._add("embed", kind, None, Rows(out), twin, kept=(table,), factor=scale, is_added=is_added, **fields)

    def _embed_panels(self, panels: Panels, out: torch.Tensor, scale: float) -> Rows:
        def twin(batch: ProgramBatch, num_rows: int) -> None:
            out[:num_rows] = operations.embed(unpack(panels), batch.input_ids, scale=scale)

        fields = {"weight": addressof(panels.c_struct()), "factor": scale}
        return self._add("embed", OpKind.EMBED_PANELS, None, Rows(out), twin, kept=(panels,), **fields)

    def _add(
        self,
        name: str,
        kind: OpKind,
        x: Rows | None,
        out: Rows,
        twin: Twin,
        *,
        kept: tuple[Any, ...] = (),
        **fields: Any,
    ) -> Rows:
        struct = COp(
            kind=kind,
            is_sampled=out.is_sampled,
            x=address(x.values) if x else None,
            x_stride=x.values.stride(0) if x else 0,
            out=address(out.values),
            out_stride=out.values.stride(0),
            **fields,
        )
        self._ops.append(_Op(name, out.is_sampled, struct, twin, (x, out, *kept)))
        return out


def _run_twin(op: _Op, batch: ProgramBatch) -> None:
    num_rows = len(batch.sample_rows if op.is_sampled else batch.input_ids)
    if num_rows:
        op.twin(batch, num_rows)
