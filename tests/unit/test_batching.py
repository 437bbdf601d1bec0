"""Learning how many requests to serve together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from darkroom_worker.batching import KINDS, PATIENCE, Batching

Cost = Callable[[int], float]
"""What so many requests take together, in seconds."""


def serve(batching: Batching, cost: Cost, times: int, waiting: int = 1000) -> list[int]:
    """Serve so many batches while so many requests wait, and give the sizes."""
    sizes = []
    for _ in range(times):
        count = min(batching.most("kind"), waiting)
        sizes.append(count)
        batching.learn("kind", count, cost(count))
    return sizes


def like_a_cpu(count: int) -> float:
    """Each takes its time."""
    return 3.0 * count


def like_a_gpu(count: int) -> float:
    """Up to sixteen fill it in hardly more time than one."""
    return max(1.0 + 0.01 * count, 0.0725 * count)


def best_at_eight(count: int) -> float:
    """Starting costs something, and the larger a batch, the less of it is in a cache."""
    return count * (1 / count + 0.02 * count)


def test_where_batches_do_not_pay_there_are_hardly_any() -> None:
    """On a CPU requests are served one by one, but for one of many batches that is a trial."""
    sizes = serve(Batching(), like_a_cpu, 10 * PATIENCE)
    assert sizes[:3] == [1, 1, 2]
    assert set(sizes) == {1, 2}
    assert sizes.count(2) <= 10


def test_where_batches_pay_they_double_until_they_do_not() -> None:
    """A GPU is filled after a few batches, and kept full."""
    sizes = serve(Batching(), like_a_gpu, 20)
    assert sizes[:6] == [1, 1, 2, 2, 4, 4]
    assert sizes[-1] == 16
    assert max(sizes) <= 32


def test_the_best_size_is_found_from_both_sides() -> None:
    """Too large a beginning shrinks, too small a one grows."""
    for first in (1, 64):
        sizes = serve(Batching(first), best_at_eight, 12 * PATIENCE)
        assert max(sizes[-PATIENCE // 2 :], key=sizes.count) == 8


def test_it_adapts_when_the_machine_changes() -> None:
    """What was learned on an idle device is learned anew on a busy one, and again."""
    batching = Batching()
    serve(batching, like_a_gpu, 20)
    sizes = serve(batching, like_a_cpu, 20 * PATIENCE)
    assert max(sizes[-2 * PATIENCE :], key=sizes.count) == 1
    sizes = serve(batching, like_a_gpu, 3 * PATIENCE)
    assert sizes[-1] == 16


@pytest.mark.parametrize("waiting", [1, 3])
def test_few_that_wait_teach_nothing_wrong(waiting: int) -> None:
    """Where a trial cannot be made for lack of requests, sizes stay what they can be."""
    batching = Batching()
    sizes = serve(batching, like_a_gpu, 2 * PATIENCE, waiting)
    assert max(sizes) == waiting
    assert batching.most("kind") <= 2 * waiting


def test_one_bad_moment_decides_for_a_while_only() -> None:
    """A machine that was busy at the first trial is tried again."""
    batching, moments = Batching(), iter([1.0, 1.0, 50.0])
    sizes = serve(batching, lambda count: next(moments, like_a_gpu(count)), 3 * PATIENCE)
    assert sizes[3 : PATIENCE // 2] == [1] * (PATIENCE // 2 - 3)
    assert sizes[-1] == 16


def test_each_kind_has_its_own_size_and_few_are_remembered() -> None:
    """Small pictures in large batches, large ones alone; the memory of kinds is bounded."""
    batching = Batching()
    serve(batching, like_a_gpu, 20)
    assert batching.most("other") == 1
    for kind in range(KINDS):
        batching.most(kind)
    assert batching.most("kind") == 1
