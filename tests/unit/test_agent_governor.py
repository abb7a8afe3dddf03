"""The governor on a fake cpufreq tree: set, refused with the command, and put back whatever ends the measurement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.agent_tools import SOURCE, AgentProcess, make_onnx, run_request, wait_until_gone

from kdedge_agent import cpufreq
from kdedge_agent.errors import AgentFailure
from kdedge_agent.governor import JOURNAL, GovernorChange, governed, recover

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cpufreq is Linux's")
CPUFREQ = "sys/devices/system/cpu/cpufreq"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clusters, as on a big.LITTLE board: processors 0-3 and 4-5."""
    tree = tmp_path / "board"
    for policy, cpus, governor in (("policy0", "0 1 2 3", "ondemand"), ("policy4", "4 5", "schedutil")):
        folder = tree / CPUFREQ / policy
        folder.mkdir(parents=True)
        (folder / "affected_cpus").write_text(cpus + "\n")
        (folder / "scaling_governor").write_text(governor + "\n")
        (folder / "scaling_available_governors").write_text("ondemand schedutil performance powersave\n")
    return tree


def governors(root: Path) -> list[str]:
    return [(policy / "scaling_governor").read_text().strip() for policy in cpufreq.policies(root)]


def test_sets_those_of_the_measured_processors_and_puts_them_back(root: Path, tmp_path: Path) -> None:
    change = GovernorChange("performance", root, [5], tmp_path / "work")
    with governed(change):
        assert governors(root) == ["ondemand", "performance"]
        assert json.loads((tmp_path / "work" / JOURNAL).read_text())["was"]
        assert change.report["set"] == {"policy4": "schedutil"}
    assert governors(root) == ["ondemand", "schedutil"]
    assert change.report["restored"] is True
    assert change.report["refused"] == {}
    assert not (tmp_path / "work" / JOURNAL).exists()


def test_puts_back_after_a_failure(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), governed(GovernorChange("performance", root, None, tmp_path)):
        assert governors(root) == ["performance", "performance"]
        raise RuntimeError("the worker died")
    assert governors(root) == ["ondemand", "schedutil"]


def test_leaves_alone_what_somebody_else_has_set_meanwhile(root: Path, tmp_path: Path) -> None:
    with governed(GovernorChange("performance", root, None, tmp_path)):
        (root / CPUFREQ / "policy0" / "scaling_governor").write_text("powersave\n")
    assert governors(root) == ["powersave", "schedutil"]


def test_a_governor_that_is_not_there_is_the_users_mistake(root: Path, tmp_path: Path) -> None:
    change = GovernorChange("turbo", root, None, tmp_path)
    with pytest.raises(AgentFailure, match="policy0 has no governor turbo") as caught, governed(change):
        pass
    assert (caught.value.kind, caught.value.cure) == ("request", "It has: ondemand, schedutil, performance, powersave")


def test_two_measurements_do_not_set_it_at_once(root: Path, tmp_path: Path) -> None:
    with governed(GovernorChange("performance", root, None, tmp_path)):
        with (
            pytest.raises(AgentFailure, match="another measurement"),
            governed(GovernorChange("powersave", root, None, tmp_path)),
        ):
            pass
        assert governors(root) == ["performance", "performance"]
        assert recover(tmp_path) == []
    assert governors(root) == ["ondemand", "schedutil"]


def test_a_machine_without_cpufreq_says_so(tmp_path: Path) -> None:
    change = GovernorChange("performance", tmp_path / "empty", None, tmp_path)
    with governed(change):
        pass
    assert "no cpufreq" in change.report["refused"]["all"]
    assert change.report["command"] is None


def test_a_user_who_may_not_is_told_what_root_would_have_to_run(root: Path) -> None:
    """Run as nobody where this is root, who may everything: only so is a file of the kernel's refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        root.rename(folder / "board")
        places = sorted((folder / "board" / CPUFREQ).glob("*/scaling_governor"))
        for place in places:
            place.chmod(0o444)
        privileged = os.geteuid() == 0
        if privileged:
            os.seteuid(65534)
        change = GovernorChange("performance", folder / "board", None, folder / "work")
        try:
            with governed(change):
                assert governors(folder / "board") == ["ondemand", "schedutil"]
        finally:
            if privileged:
                os.seteuid(0)
        assert set(change.report["refused"].values()) == {"Permission denied"}
        assert change.report["command"] == f"echo performance | sudo tee {places[0]} {places[1]}"
        assert change.report["restored"] is True


def test_a_journal_of_another_boot_is_thrown_away(root: Path, tmp_path: Path) -> None:
    place = root / CPUFREQ / "policy0" / "scaling_governor"
    place.write_text("performance")
    journal = {"boot_id": "another", "governor": "performance", "was": {str(place): "ondemand"}}
    (tmp_path / JOURNAL).write_text(json.dumps(journal))
    assert recover(tmp_path) == []
    assert place.read_text() == "performance"
    assert not (tmp_path / JOURNAL).exists()


def test_a_journal_writes_nowhere_but_into_cpufreq(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("performance")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    document = {"boot_id": boot_id, "governor": "performance", "was": {str(victim): "ondemand"}}
    (tmp_path / JOURNAL).write_text(json.dumps(document))
    assert recover(tmp_path) == []
    assert victim.read_text() == "performance"
    for text in ("", "{", "[]", '{"was": 3}'):
        (tmp_path / JOURNAL).write_text(text)
        assert recover(tmp_path) == []


def agent_on(root: Path, home: Path) -> AgentProcess:
    """A real agent; the outermost boundary is faked, the root of the tree whose files it reads and writes."""
    code = f"from pathlib import Path\nfrom kdedge_agent import requests\nrequests.ROOT = Path({str(root)!r})\n"
    code += "from kdedge_agent.__main__ import main\nmain()\n"
    return AgentProcess(home, [sys.executable, "-c", code], {"PYTHONPATH": str(SOURCE)})


@pytest.fixture
def measuring(root: Path, tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent in the midst of a measurement, with another governor set."""
    model = make_onnx(tmp_path / "m.onnx")
    with agent_on(root, tmp_path) as agent:
        agent.send({"type": "measure", "request": run_request(model, min_duration_s=600.0, governor="performance")})
        agent.wait_for_phase("timing")
        assert governors(root) == ["performance", "schedutil"], "the processors of this machine are of policy0"
        yield agent


def restored(root: Path, within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if governors(root) == ["ondemand", "schedutil"]:
            return True
        time.sleep(0.02)
    return False


def worker_and_keeper(agent: AgentProcess) -> tuple[int, int]:
    found = {}
    for pid in agent.workers():
        found["worker" if b"--worker" in Path(f"/proc/{pid}/cmdline").read_bytes() else "keeper"] = pid
    return found["worker"], found["keeper"]


def kill_worker(agent: AgentProcess) -> None:
    os.kill(worker_and_keeper(agent)[0], signal.SIGKILL)
    assert agent.answer()["kind"] in ("runtime-died", "out-of-memory")


def kill_agent(agent: AgentProcess) -> None:
    os.kill(agent.process.pid, signal.SIGKILL)


def terminate_agent(agent: AgentProcess) -> None:
    os.kill(agent.process.pid, signal.SIGTERM)


def lose_connection(agent: AgentProcess) -> None:
    agent.close_stdin()


@pytest.mark.parametrize("accident", [kill_worker, kill_agent, terminate_agent, lose_connection])
def test_whatever_happens_it_is_put_back(
    measuring: AgentProcess, root: Path, accident: Callable[[AgentProcess], None]
) -> None:
    processes = worker_and_keeper(measuring)
    accident(measuring)
    assert restored(root)
    assert wait_until_gone(processes)
    assert not (measuring.cache / JOURNAL).exists()


def test_when_agent_and_keeper_are_killed_the_next_agent_puts_it_back(
    measuring: AgentProcess, root: Path, tmp_path: Path
) -> None:
    worker, keeper = worker_and_keeper(measuring)
    os.kill(keeper, signal.SIGKILL)
    kill_agent(measuring)
    assert wait_until_gone([worker, keeper, measuring.process.pid])
    assert governors(root) == ["performance", "schedutil"]
    with agent_on(root, tmp_path):
        assert governors(root) == ["ondemand", "schedutil"]


def test_a_measurement_records_governor_pin_and_rest(root: Path, tmp_path: Path) -> None:
    model = make_onnx(tmp_path / "m.onnx")
    cpu = max(os.sched_getaffinity(0))
    wishes = {"governor": "performance", "pin": [cpu], "cool_down_s": 0.3, "scenario": "offline", "batch_size": 4}
    with agent_on(root, tmp_path) as agent:
        answer = agent.ask({"type": "measure", "request": run_request(model, **wishes)})
        assert answer["type"] == "result", answer
        found = answer["facts"]
        assert found["governor"]["set"] == {"policy0": "ondemand"}
        assert found["governor"]["restored"] is True
        assert found["measured_cpus"] == [cpu]
        assert found["cool_down"]["waited_s"] >= 0.3
        assert found["before"]["frequency"]["policy0"]["governor"] == "performance"
        assert answer["batch_size"] == 4
        assert answer["inputs"][0]["shape"][0] == 4
        assert governors(root) == ["ondemand", "schedutil"]
        missing = agent.ask({"type": "measure", "request": run_request(model, pin=[cpu, 4000])})
        assert (missing["kind"], missing["message"]) == ("request", "processor 4000 is not there, or not ours to use")
        assert str(cpu) in missing["cure"]
        unknown = agent.ask({"type": "measure", "request": run_request(model, governor="turbo")})
        assert unknown["kind"] == "request"


def test_the_keeper_ignores_what_it_is_not_told(tmp_path: Path) -> None:
    """It ends with its parent's end of the pipe, and does nothing without a journal."""
    command = [sys.executable, "-m", "kdedge_agent", "--keep-governor", str(tmp_path / JOURNAL)]
    done = subprocess.run(command, input=b"x", env={**os.environ, "PYTHONPATH": str(SOURCE)}, timeout=60, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
