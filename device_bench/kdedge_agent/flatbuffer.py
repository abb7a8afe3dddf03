"""The little of a TFLite file that the agent must read itself: its metadata, and whether the file is whole.

The interpreter packages give no access to ``Model.metadata``, and not every one of them verifies a file before
it walks through it. Tables and field numbers: tensorflow/lite/schema/schema.fbs; binary form:
https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Dict, List, Optional, Tuple, Union

_OPERATOR_CODES, _SUBGRAPHS, _BUFFERS, _METADATA = 1, 2, 4, 6  # fields of Model
_DATA, _OFFSET, _SIZE = 0, 1, 2  # fields of Buffer
_NAME, _BUFFER = 0, 1  # fields of Metadata
_TENSORS, _OPERATORS = 0, 3  # fields of SubGraph
_SHAPE, _TENSOR_NAME, _QUANTIZATION = 0, 3, 4  # fields of Tensor
_SCALE, _ZERO_POINT = 2, 3  # fields of QuantizationParameters
_INPUTS, _OUTPUTS, _OPTIONS = 1, 2, 4  # fields of Operator
_MAX_ITEMS = 1 << 20

Data = Union[bytes, mmap]


class NotTflite(Exception):  # noqa: N818 - reads as the fact it states
    """The bytes are no whole TFLite model."""


class _Table:
    """One flatbuffer table; every access is checked against the end of the data."""

    def __init__(self, data: Data, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - _unpack(data, "<i", position)
        self._vtable_bytes = _unpack(data, "<H", self._vtable)

    def field(self, number: int) -> Optional[int]:
        """Position of a field, or None where the table leaves it at its default."""
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_bytes:
            return None
        offset = _unpack(self._data, "<H", self._vtable + entry)
        return self._position + offset if offset else None

    def scalar(self, number: int, code: str, default: int) -> int:
        """A number of the struct format ``code``."""
        position = self.field(number)
        return default if position is None else _unpack(self._data, code, position)

    def vector(self, number: int, item_bytes: int) -> Optional[Tuple[int, int]]:
        """Position of the first item and number of items; None where the vector is absent."""
        position = self.field(number)
        if position is None:
            return None
        start = position + _unpack(self._data, "<I", position)
        count = _unpack(self._data, "<I", start)
        if start + 4 + count * item_bytes > len(self._data):
            raise NotTflite("it ends in the middle of a vector")
        return start + 4, count

    def tables(self, number: int) -> List[_Table]:
        """The tables of a vector of tables."""
        found = self.vector(number, 4)
        if found is None:
            return []
        first, count = found
        if count > _MAX_ITEMS:
            raise NotTflite(f"it claims {count} tables in one vector")
        positions = [first + 4 * index for index in range(count)]
        return [_Table(self._data, position + _unpack(self._data, "<I", position)) for position in positions]

    def table(self, number: int) -> List[_Table]:
        """The table of a field, or none."""
        position = self.field(number)
        return [] if position is None else [_Table(self._data, position + _unpack(self._data, "<I", position))]

    def content(self, number: int) -> Optional[bytes]:
        """A vector of bytes or a string."""
        found = self.vector(number, 1)
        return None if found is None else bytes(self._data[found[0] : found[0] + found[1]])


def _unpack(data: Data, code: str, position: int) -> int:
    if position < 0 or position + struct.calcsize(code) > len(data):
        raise NotTflite("it ends in the middle of a table")
    return int(struct.unpack_from(code, data, position)[0])


def read_metadata(data: Data) -> Dict[str, bytes]:
    """The named metadata buffers of a TFLite model, after a check that every buffer lies within the data.

    Raises:
        NotTflite: not TFLite at all, or cut short.
    """
    if len(data) < 8 or bytes(data[4:8]) != b"TFL3":
        raise NotTflite("it lacks the TFL3 mark of a TFLite model")
    model = _Table(data, _unpack(data, "<I", 0))
    buffers = [_buffer(data, table) for table in model.tables(_BUFFERS)]
    graphs = model.tables(_SUBGRAPHS)
    if not graphs:
        raise NotTflite("it holds no graph")
    for graph in graphs:
        _check_graph(graph)
    model.tables(_OPERATOR_CODES)
    named: Dict[str, bytes] = {}
    for entry in model.tables(_METADATA):
        index = entry.scalar(_BUFFER, "<I", 0)
        if index >= len(buffers):
            raise NotTflite("its metadata names a buffer that is not there")
        begin, end = buffers[index]
        named[(entry.content(_NAME) or b"").decode("utf-8", "replace")] = bytes(data[begin:end])
    return named


def _check_graph(graph: _Table) -> None:
    """Walk tensors and operators, so that a file that was cut short anywhere is found out before a runtime reads it."""
    for tensor in graph.tables(_TENSORS):
        tensor.vector(_SHAPE, 4)
        tensor.vector(_TENSOR_NAME, 1)
        for part in tensor.table(_QUANTIZATION):
            part.vector(_SCALE, 4)
            part.vector(_ZERO_POINT, 8)
    for operator in graph.tables(_OPERATORS):
        operator.vector(_INPUTS, 4)
        operator.vector(_OUTPUTS, 4)
        operator.table(_OPTIONS)


def _buffer(data: Data, table: _Table) -> Tuple[int, int]:
    """Where the content of one buffer begins and ends; large models keep it behind the flatbuffer."""
    offset = table.scalar(_OFFSET, "<Q", 0)
    size = table.scalar(_SIZE, "<Q", 0)
    if offset > 1:
        if offset + size > len(data):
            raise NotTflite("it ends in the middle of a buffer")
        return offset, offset + size
    start, count = table.vector(_DATA, 1) or (0, 0)
    return start, start + count
