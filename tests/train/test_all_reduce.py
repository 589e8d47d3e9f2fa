"""The hierarchical all-reduce gives what torch.distributed's own gives, in the rounds that the algorithm promises."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nearpeak.errors import UsageError  # noqa: E402

CASES = [(4, 2, 1001), (4, 1, 64), (4, 4, 10), (3, 1, 257), (4, 2, 1)]
"""(ranks of the group, devices in each node, elements)."""


def _member(rank: int, folder: str) -> None:
    import torch.distributed as dist

    from nearpeak.train import all_reduce, hierarchical_all_reduce

    sends: list[int] = []
    exchange = all_reduce._exchange

    def watched(sent, received, group):
        sends.extend(peer for _, peer in sent)
        exchange(sent, received, group)

    all_reduce._exchange = watched
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    seen = []
    for ranks, devices, count in CASES:
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            x = torch.randn(count, generator=torch.Generator().manual_seed(rank))
            expected = x.clone()
            dist.all_reduce(expected, group=group)
            sends.clear()
            rounds = hierarchical_all_reduce(x, devices, group)
            abroad = sum(peer // devices != rank // devices for peer in sends)
            off = float(((x - expected).norm() / expected.norm()).item())
            every = [torch.empty_like(x) for _ in range(ranks)]
            dist.all_gather(every, x, group=group)
            seen.append((off, rounds.between, all(torch.equal(x, y) for y in every), abroad))
    refused = ""
    try:
        hierarchical_all_reduce(torch.ones(4), 3)
    except UsageError as error:
        refused = str(error)
    torch.save((seen, refused), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[tuple[float, int, bool, int]], str]]:
    """What each of four gloo processes saw, by rank."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(_member, (str(folder),), nprocs=4)
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def test_two_nodes_of_two_take_one_round_between_nodes_and_agree_with_torch(runs):
    for seen, _ in runs:
        off, between, same, abroad = seen[0]
        assert off < 1e-6
        assert between == abroad == 1
        assert same


def test_rounds_between_nodes_are_the_logarithm_of_the_nodes(runs):
    for seen, _ in runs:
        assert [case[1] for case in seen[:3]] == [1, 2, 0]
        assert [case[3] for case in seen[:3]] == [1, 2, 0]
        assert all(off < 1e-6 and same for off, _, same, _ in seen)


def test_three_nodes_fold_the_third_onto_the_first(runs):
    assert [runs[rank][0][3][1] for rank in range(3)] == [3, 1, 2]


def test_ranks_that_are_not_whole_nodes_are_refused(runs):
    assert all("4 ranks are not whole nodes of 3 devices" in refused for _, refused in runs)
