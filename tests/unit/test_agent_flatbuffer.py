from __future__ import annotations

import json
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from tests.agent_tools import METADATA, make_tflite

from kdedge_agent.flatbuffer import NotTflite, read_metadata


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tflite(tmp_path_factory.mktemp("model") / "m.tflite").read_bytes()


def read_or_none(data: bytes) -> dict[str, bytes] | None:
    try:
        return read_metadata(data)
    except NotTflite:
        return None


def test_metadata_is_what_the_schemas_own_reader_finds(model: bytes) -> None:
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    expected = {entry.name.decode(): bytes(parsed.buffers[entry.buffer].data) for entry in parsed.metadata}
    assert read_metadata(model) == expected
    assert json.loads(expected["kdedge"])["labels"] == METADATA["labels"]


def test_a_model_without_metadata_has_none(tmp_path: Path) -> None:
    assert read_metadata(make_tflite(tmp_path / "m.tflite", metadata={}).read_bytes()) == {}


def test_every_truncation_is_refused_or_harmless(model: bytes) -> None:
    """Cut at every length: refused with a reason, or (where only padding is gone) the same answer."""
    whole = read_metadata(model)
    refused = [length for length in range(len(model)) if read_or_none(model[:length]) is None]
    assert all(read_or_none(model[:length]) in (None, whole) for length in range(len(model)))
    assert refused == list(range(len(refused))), "what is longer is not more broken"
    assert len(refused) > 0.97 * len(model)


@given(st.data())
def test_flipped_bytes_never_crash(model: bytes, data: st.DataObject) -> None:
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_metadata(bytes(damaged))
    except NotTflite:
        return


@given(st.binary(max_size=300))
def test_foreign_bytes_never_crash(junk: bytes) -> None:
    with pytest.raises(NotTflite):
        read_metadata(junk[:4] + b"TFL3" + junk[4:])
    with pytest.raises(NotTflite, match="TFL3"):
        read_metadata(b"\x08\0\0\0ONNX" + junk)
