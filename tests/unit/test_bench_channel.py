"""Hostile devices: whatever the other end of the wire says, the host answers with one clear line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kdedge.errors import AgentError, DeviceError, WireError

from kdedge_agent.protocol import MAX_LINE_BYTES
from kdedge_bench.channel import AgentChannel, Message
from kdedge_bench.devices import Device
from kdedge_bench.faults import RuntimeMissingError, agent_ended

DEVICE = Device("pi", "pi@host")
HELLO = (
    """print('{"type": "hello", "protocol": 1, "agent_version": "0", "python": "3"}', flush=True); import sys, time;"""
)


@pytest.fixture
def speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Message]:
    """What the host makes of a device that runs the given program instead of an agent."""

    monkeypatch.setattr("kdedge_bench.channel._GRACE_S", 0.5)

    def run(program: str, *, silence_s: float = 20.0, progress: Callable[[Message], None] | None = None) -> Message:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        channel = AgentChannel(process, DEVICE, lambda code, err: agent_ended(code, err, DEVICE), silence_s=silence_s)
        try:
            with channel:
                return channel.request({"type": "facts"}, on_progress=progress)
        finally:
            assert process.poll() is not None

    return run


CASES = [
    ("no JSON", "print('Segmentation fault')", "no message"),
    ("binary", "sys.stdout.buffer.write(bytes(range(128, 200)) + b'\\n')", "no message"),
    ("no object", "print('[1, 2]')", "no message"),
    ("no type", "print('{}')", "no message"),
    ("type is no text", "print('{\"type\": 7}')", "no message"),
    ("unknown type", 'print(\'{"type": "exec"}\')', "unknown type 'exec'"),
    ("a second greeting", 'print(\'{"type": "hello", "protocol": 1}\')', "unexpected 'hello'"),
    ("NaN", 'print(\'{"type": "result", "x": NaN}\')', "no message"),
    ("Infinity", 'print(\'{"type": "result", "x": -Infinity}\')', "no message"),
    ("deep", "print('{\"type\": \"result\", \"x\": ' + '[' * 50 + ']' * 50 + '}')", "nested more than"),
    ("bottomless", 'print(\'{"type": "result", "x": \' + \'[\' * 200000)', "no message"),
    ("huge number", "print('{\"type\": \"result\", \"x\": ' + '9' * 10000 + '}')", "no message"),
    ("half a line", 'sys.stdout.write(\'{"type": "resu\'); sys.stdout.flush(); sys.exit(3)', "ended with code 3"),
    ("leaves", "sys.exit(3)", "ended with code 3"),
    ("dies", "import os; os.kill(os.getpid(), 9)", "ended with code -9"),
    ("last words", "sys.stderr.write('\\x1b]0;pwn\\x07\\x1b[31mno space'); sys.exit(1)", "code 1: no space"),
    ("error without words", 'print(\'{"type": "error"}\')', "did not say why"),
    ("error of another form", 'print(\'{"type": "error", "kind": [1], "message": {"a": 1}, "cure": 5}\')', "'a': 1"),
]


@pytest.mark.parametrize(("what", "program", "words"), CASES, ids=[case[0] for case in CASES])
def test_hostile_answers(speak: Callable[..., Message], what: str, program: str, words: str) -> None:
    with pytest.raises(DeviceError) as caught:
        speak(HELLO + program)
    said = str(caught.value)
    assert words in said
    assert said.isprintable() and len(said) < 700


def test_what_a_device_said_before_it_left_is_heard() -> None:
    """It ends before it was asked, so that the request has nowhere to go; its words are there all the same."""
    words = """print('{"type": "error", "kind": "runtime-error", "message": "out of luck", "cure": "Try again"}')"""
    process = subprocess.Popen(
        [sys.executable, "-c", HELLO + words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with AgentChannel(process, DEVICE, lambda code, err: agent_ended(code, err, DEVICE)) as channel:
        process.wait(20)
        with pytest.raises(AgentError, match="out of luck"):
            channel.request({"type": "facts"})
        with pytest.raises(AgentError, match="ended with code 0"):
            channel.request({"type": "facts"})


def test_a_line_without_end(speak: Callable[..., Message]) -> None:
    endless = "\nwhile True: sys.stdout.write('a' * 1000000)"
    with pytest.raises(WireError, match=f"line of more than {MAX_LINE_BYTES} bytes"):
        speak(HELLO + endless)


def test_progress_without_end(speak: Callable[..., Message], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge_bench.channel.MAX_ANSWER_BYTES", 1 << 20)
    endless = '\nwhile True: print(\'{"type": "progress", "x": "\' + \'a\' * 10000 + \'"}\')'
    with pytest.raises(WireError, match="answer of more than"):
        speak(HELLO + endless)


@pytest.mark.parametrize("version", ["2", "0", '"1"', "null", '{"a": 1}'])
def test_other_protocols(speak: Callable[..., Message], version: str) -> None:
    program = f"""print('{{"type": "hello", "protocol": {version}}}', flush=True); import time; time.sleep(60)"""
    with pytest.raises(WireError, match="speaks 1"):
        speak(program)


def test_noise_instead_of_a_greeting(speak: Callable[..., Message]) -> None:
    with pytest.raises(WireError, match="no greeting"):
        speak("while True: print('welcome')")


def test_silence(speak: Callable[..., Message]) -> None:
    with pytest.raises(WireError, match="no sign of life"):
        speak(HELLO + "time.sleep(600)", silence_s=0.5)


def test_escapes_never_arrive(speak: Callable[..., Message]) -> None:
    seen: list[Message] = []
    dirty = "\\\\u001b[2J\\\\u001b]52;c;cHduZWQ=\\\\u0007ok\\\\u202e\\\\u0000"
    answer = speak(
        HELLO + f"""print('{{"type": "progress", "phase": "{dirty}"}}');"""
        f"""print('{{"type": "result", "{dirty}": ["{dirty}"]}}', flush=True)""",
        progress=seen.append,
    )
    assert seen == [{"type": "progress", "phase": "ok"}]
    assert answer == {"type": "result", "ok": ["ok"]}


def test_errors_carry_the_cure(speak: Callable[..., Message]) -> None:
    kind = '{"type": "error", "kind": "runtime-missing", "message": "onnxruntime is not installed", "cure": "x"}'
    with pytest.raises(RuntimeMissingError, match="kdedge device setup pi"):
        speak(HELLO + f"print('{kind}')")
    with pytest.raises(AgentError, match="Buy a fan"):
        speak(HELLO + """print('{"type": "error", "kind": "hot", "message": "too hot", "cure": "Buy a fan."}')""")


def test_a_child_that_ignores_the_end_is_ended(speak: Callable[..., Message]) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    with pytest.raises(WireError, match="no sign of life"):
        speak(HELLO + stubborn + "time.sleep(600)", silence_s=0.5)
