"""Processes that train one model together."""

import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from training.peers import Peers


def meet(rank: int, port: int, folder: str) -> None:
    """What each of two processes does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            patch.setenv(name, str(value))
        peers, notes = Peers(), Path(folder) / "first"
        with peers.first_alone():
            assert notes.exists() == (rank == 1)
            notes.touch()
        parameters = [
            nn.Parameter(torch.zeros(2, 3)),
            nn.Parameter(torch.zeros(5)),
            nn.Parameter(torch.zeros(1)),
        ]
        parameters[0].grad, parameters[1].grad = torch.full((2, 3), 1.0 + rank), torch.arange(5.0) * rank
        peers.average(parameters)
        assert (peers.rank, peers.count) == (rank, 2)
        assert torch.equal(parameters[0].grad, torch.full((2, 3), 1.5))
        assert torch.equal(parameters[1].grad, torch.arange(5.0) / 2)
        assert parameters[2].grad is None
        assert peers.agree(2.0 + rank, stop=False) == (2.5, False)
        assert peers.agree(1.0, stop=rank == 1) == (1.0, True)
        (Path(folder) / str(rank)).touch()


@pytest.mark.enable_socket
def test_two_processes_take_the_mean_of_their_gradients_and_stop_together(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    multiprocessing.spawn(meet, (port, str(tmp_path)), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "0", "1"}


def test_one_process_shares_nothing() -> None:
    peers, parameter = Peers(), nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    peers.average([parameter])
    assert torch.equal(parameter.grad, torch.ones(2))
    assert (peers.rank, peers.count, peers.agree(3.0, stop=True)) == (0, 1, (3.0, True))
