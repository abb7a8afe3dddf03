"""What two processes make of a batch is what one makes of it: batch norm, gradients, figures, rows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from kdedge.distillation import require_one_disk
from kdedge.errors import KdedgeError
from kdedge.ranks import RankError, Ranks, extremes_over_ranks, is_one_of_several, joined, speaks
from kdedge.run_folder import RunFolder
from tests.device.sshd import free_port
from torch import nn
from torch.multiprocessing.spawn import spawn

COUNT = 2


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    return nn.Sequential(*layers, nn.BatchNorm1d(5, momentum=None), nn.BatchNorm1d(5, affine=False)).double()


def samples() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_step(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (module(x) - torch.arange(5.0)).pow(4).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def one_of_two(rank: int, port: int, folder: str) -> None:
    """What each process does and checks."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(COUNT), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined() as ranks:
        assert (ranks.rank, ranks.count, ranks.writes) == (rank, COUNT, rank == 0)
        single, shared = net(), net()
        whole = samples()
        mine = whole[ranks.share(torch.arange(8))]
        loss = one_step(single, whole)
        with ranks.whole_batch_norm(shared):
            parallel = ranks.parallel(shared)
            own = one_step(parallel, mine)
            (mean,) = ranks.means(float(own))
            shared.eval()
            assert torch.isfinite(shared(mine)).all()
        assert mean == pytest.approx(float(loss), rel=1e-10)
        for (name, ours), theirs in zip(shared.named_parameters(), single.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12, msg=name)
        for buffer, wanted in zip(shared.buffers(), single.buffers(), strict=True):
            torch.testing.assert_close(buffer, wanted, rtol=1e-10, atol=1e-12)
        assert all("forward" not in vars(module) for module in shared.modules()), "as it was"

        numbers = torch.arange(21.0).view(7, 3)  # shares of four and three
        torch.testing.assert_close(ranks.rows(numbers[ranks.share(torch.arange(7))]), numbers)
        labels = torch.arange(7)
        assert ranks.rows(labels[ranks.share(torch.arange(7))]).tolist() == labels.tolist()
        low, high = extremes_over_ranks(torch.tensor(float(rank)), torch.tensor(10.0 + rank))
        assert (float(low), float(high)) == (0.0, 11.0)
        with ranks.writer_first():
            if ranks.writes:
                (Path(folder) / "first").write_text("0")
            assert (Path(folder) / "first").exists()
        (Path(folder) / f"done{rank}").touch()


def test_two_processes(tmp_path: Path) -> None:
    spawn(one_of_two, (free_port(), str(tmp_path)), nprocs=COUNT)  # type: ignore[no-untyped-call]
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"]


def test_one_process_sends_nothing() -> None:
    ranks = Ranks()
    x = torch.arange(6.0).view(3, 2)
    assert ranks.share(x) is not None and torch.equal(ranks.share(x), x) and ranks.rows(x) is x
    assert ranks.means(0.1, 0.2) == (0.1, 0.2)
    module = net()
    assert ranks.parallel(module) is module
    with ranks.whole_batch_norm(module), ranks.writer_first():
        assert all("forward" not in vars(m) for m in module.modules())
    low, high = torch.tensor(0.0), torch.tensor(1.0)
    assert extremes_over_ranks(low, high) == (low, high)


def test_who_is_who() -> None:
    several = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert is_one_of_several(several) and not speaks(several) and speaks({**several, "RANK": "0"})
    assert not is_one_of_several({"RANK": "0", "WORLD_SIZE": "2"}), "another program's words"
    assert not is_one_of_several({**several, "WORLD_SIZE": "1"}) and speaks({})


def test_others_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "7", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(KdedgeError, match="cannot reach each other") as caught, joined():
        pass
    assert caught.value.exit_code == 3


def one_of_two_machines(rank: int, port: int, folder: str) -> None:
    """Each with a disk of its own under the same name."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(COUNT), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for shared in (True, False):
        out = Path(folder) / ("shared" if shared else f"disk{rank}")
        with (
            joined() as ranks,
            RunFolder(out, {}, {}, contents={}, resume=False, overwrite=False, reads_only=not ranks.writes) as run,
        ):
            with ranks.writer_first():
                run.begin()
            if shared:
                require_one_disk(run, ranks)
            else:
                with pytest.raises(RankError, match="do not see the same --out"):
                    require_one_disk(run, ranks)
        os.environ["MASTER_PORT"] = str(port + 1)


def test_processes_that_do_not_share_the_disk_are_refused(tmp_path: Path) -> None:
    spawn(one_of_two_machines, (free_port(), str(tmp_path)), nprocs=COUNT)  # type: ignore[no-untyped-call]
