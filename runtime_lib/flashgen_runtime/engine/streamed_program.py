"""Runs a program of kernels whose weights are still arriving: each part when its weights are there. No transformers."""

from typing import NamedTuple

from flashgen_runtime.engine.weight_source import Mark
from flashgen_runtime.kernels.program import Program, ProgramBatch
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.stream import WeightStream


class _Section(NamedTuple):
    """A part of a program: its operations from those of the part before, and what must have arrived for them."""

    last_op: int
    mark: Mark


class StreamedProgram:
    """A program, and what it waits for.

    Args:
        program: gets its operations between the calls of `needs`.
        stream: brings the weights; `None`: they are there.
    """

    def __init__(self, program: Program, stream: WeightStream[OpenFile] | None) -> None:
        self.program = program
        self._stream = stream
        self._sections: list[_Section] = []

    def needs(self, mark: Mark | None) -> None:
        """Says what the operations need that were added since the last call."""
        if mark is not None:
            self._sections.append(_Section(self.program.num_ops, mark))

    def run(self, batch: ProgramBatch) -> None:
        """Does all operations, in one call once everything is there; raises `WeightsError` if it cannot be read."""
        if self._stream is None:
            self.program.run(batch)
            return
        first = 0
        for last_op, mark in self._sections:
            self._stream.wait_for(mark.file, mark.end)
            self.program.run(batch, first, last_op)
            first = last_op
        self.program.run(batch, first)
        if self._stream.is_complete:
            # Lets go of the files too: memory of a checkpoint that is read in another form is free.
            self._stream = None
            self._sections.clear()

    def close(self) -> None:
        """Stops what is on its way; there are no runs afterwards."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._sections.clear()
