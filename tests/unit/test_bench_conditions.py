from __future__ import annotations

from pathlib import Path

import pytest
from kdedge.cli.conditions import processors, refuse_for_bundle, rest_before
from kdedge.errors import UserError

from kdedge_agent.protocol import MAX_SAMPLES, ProtocolError
from kdedge_agent.run_request import RunRequest
from kdedge_bench.artifact_file import ArtifactFile
from kdedge_bench.devices import LOCAL
from kdedge_bench.faults import from_agent


@pytest.mark.parametrize(
    ("text", "found"), [(None, None), ("0", [0]), ("2-3", [2, 3]), ("3, 0-1,1", [0, 1, 3]), ("10", [10])]
)
def test_processors(text: str | None, found: list[int] | None) -> None:
    assert processors(text) == found


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,", "0-99999", "4096"])
def test_no_processors(text: str) -> None:
    with pytest.raises(UserError, match="--pin") as caught:
        processors(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("60", {"cool_down_s": 60.0}),
        ("1.5s", {"cool_down_s": 1.5}),
        ("45C", {"cool_down_c": 45.0}),
        ("50.5 °C", {"cool_down_c": 50.5}),
    ],
)
def test_rest_before(text: str | None, found: dict[str, float]) -> None:
    assert rest_before(text) == found


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "45F", "1e3"])
def test_no_rest(text: str) -> None:
    with pytest.raises(UserError, match="--cool-down"):
        rest_before(text)


def test_a_bundle_takes_none_of_it() -> None:
    refuse_for_bundle({"scenario": "single-stream", "pin": None, "starts": 1}, Path("b"))
    offline, pinned, fixed = {"scenario": "offline"}, {"pin": [0]}, {"governor": "performance"}
    for wish in (offline, pinned, fixed, {"cool_down_s": 3.0}, {"starts": 3}):
        with pytest.raises(UserError, match=f"--{next(iter(wish)).removesuffix('_s').replace('_', '-')} is for"):
            refuse_for_bundle(wish, Path("b"))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"scenario": "server"}, "scenario"),
        ({"batch_size": 4}, "one sample at a time"),
        ({"scenario": "offline", "batch_size": 0}, "batch_size"),
        ({"starts": 0}, "starts"),
        ({"starts": 51}, "starts"),
        ({"pin": []}, "pin"),
        ({"pin": [-1]}, "pin"),
        ({"pin": [True]}, "pin"),
        ({"governor": "performance; reboot"}, "governor"),
        ({"cool_down_s": 0.0}, "cool_down_s"),
        ({"cool_down_c": 500.0}, "cool_down_c"),
        ({"cool_down_s": 1.0, "cool_down_c": 40.0}, "not both"),
    ],
)
def test_what_no_agent_is_asked(wish: dict[str, object], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        RunRequest(artifact="m.onnx", artifact_sha256="0" * 64, format="onnx", **wish)  # type: ignore[arg-type]


@pytest.mark.parametrize(("starts", "repetitions"), [(1, 1000), (3, 1000), (5, 3), (7, MAX_SAMPLES), (50, 1)])
def test_starts_share_what_is_asked_for(starts: int, repetitions: int) -> None:
    asked = RunRequest(
        artifact="m.onnx", artifact_sha256="0" * 64, format="onnx", starts=starts, repetitions=repetitions,
        min_duration_s=2.0, profile=True,
    )  # fmt: skip
    shares = [asked.of_start(number) for number in range(starts)]
    assert repetitions <= sum(share.repetitions for share in shares) < repetitions + starts
    assert sum(share.min_duration_s for share in shares) == pytest.approx(2.0)
    assert sum(share.max_samples for share in shares) <= MAX_SAMPLES
    assert [share.profile for share in shares] == [False] * (starts - 1) + [True]


def test_what_the_device_cannot_do_for_the_user_is_the_users_mistake() -> None:
    message: dict[str, object] = {
        "type": "error",
        "kind": "request",
        "message": "processor 9 is not there",
        "cure": "There is: 0, 1",
    }
    error = from_agent(message, LOCAL, ArtifactFile(Path("/m.onnx"), "onnx", "0" * 64, 1))
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert "There is: 0, 1" in str(error)
