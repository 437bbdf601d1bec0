"""Whose turn it is: who waits, who shares the cores, and who shares nothing."""

from __future__ import annotations

import threading

import pytest
import torch

from darkroom_infra.catalog import VaeEntry
from darkroom_wire.jobs import JobOptions
from darkroom_worker.batching import Batching
from darkroom_worker.requests import DeviceRequest
from darkroom_worker.turns import Turn, Turns

SECONDS = 60


def request(name: str = "a", family: str = "sd") -> DeviceRequest:
    """Make a request of a kind."""
    entry = VaeEntry(name=name, family=family, source="/nowhere")
    return DeviceRequest(entry, torch.zeros(1, 4, 8, 8), JobOptions(vae=name))


def make_turns(lanes: int, *waiting: DeviceRequest, batch: int = 1) -> Turns:
    """Make turns with requests that wait."""
    turns = Turns(lanes, Batching(first=batch))
    for each in waiting:
        turns.add(each)
    return turns


def test_requests_of_a_kind_share_the_lanes() -> None:
    """They are handed out in their order, to whoever is free, as long as there are any."""
    waiting = [request() for _ in range(4)]
    turns = make_turns(2, *waiting)
    first, second = turns.take(0), turns.take(1)
    assert (first.width, second.width) == (2, 2)
    assert not turns.end(second)
    third = turns.take(1)
    assert not turns.end(first)
    fourth = turns.take(0)
    assert [turn.batch for turn in (first, second, third, fourth)] == [[each] for each in waiting]
    assert turns.under_way() == [third, fourth]
    assert not turns.end(third)
    assert turns.end(fourth), "all lanes are at nothing"


def test_a_single_request_has_all_cores_and_shares_them_with_none_that_comes_later() -> None:
    """The number of lanes is chosen when a kind is begun with."""
    turns = make_turns(2, request())
    alone = turns.take(0)
    assert alone.width == 1
    turns.add(request())
    turns.add(request())
    taken = take_in_thread(turns, 1)
    assert not taken.wait(0.2)
    turns.end(alone)
    assert turns.take(0).width == 2
    assert taken.wait(SECONDS)


def test_another_kind_waits_for_its_turn_and_nobody_overtakes_it() -> None:
    """A kind begins when the one before is over, even if more of that have come meanwhile."""
    other = request("b")
    turns = make_turns(2, request(), request(), other, request())
    first, second = turns.take(0), turns.take(1)
    turns.end(first)
    taken = take_in_thread(turns, 0)
    assert not taken.wait(0.2)
    turns.end(second)
    assert taken.wait(SECONDS)
    (turn,) = turns.under_way()
    assert turn.batch == [other]


@pytest.mark.parametrize("kind", ["video", "alone", "undivided"])
def test_some_share_the_device_with_nobody(kind: str) -> None:
    """Videos, suspects, and what needs all memory have all lanes' cores."""
    waiting = [request(family="wan" if kind == "video" else "sd") for _ in range(2)]
    for each in waiting:
        each.alone, each.undivided = kind == "alone", kind == "undivided"
    turns = make_turns(2, *waiting)
    turn = turns.take(0)
    assert (turn.width, turn.batch) == (1, waiting[:1])
    assert not take_in_thread(turns, 1).wait(0.2)


def test_a_batch_leaves_something_for_other_lanes() -> None:
    """What waits is shared out, before it is learned how large batches may be."""
    turns = make_turns(2, *(request() for _ in range(5)), batch=8)
    assert [len(turns.take(lane).batch) for lane in (0, 1)] == [2, 1]
    turns = make_turns(1, *(request() for _ in range(5)), batch=8)
    assert len(turns.take(0).batch) == 5


def test_what_is_put_back_is_next() -> None:
    """A request that could not share comes before those that wait."""
    back = request("b")
    turns = make_turns(2, request())
    turns.add(back, first=True)
    assert turns.take(0).batch == [back]


def take_in_thread(turns: Turns, lane: int) -> threading.Event:
    """Have a lane wait for its turn; the event says that it has got one."""
    taken = threading.Event()

    def take() -> None:
        got: Turn = turns.take(lane)
        assert got.batch
        taken.set()

    threading.Thread(target=take, daemon=True).start()
    return taken
