"""What a new engine is given of a dead one's requests, and who is to blame."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from tests.engine.fake_worker import request
from trifocal.engine.child import Death
from trifocal.engine.flights import Flights, InFlight
from trifocal.types import Request, TokenOutput


def flight(name: str, **params: object) -> InFlight[Any]:
    nobody = cast(Any, None)
    return InFlight(request(name, [2, 3], **params), choice=nobody, stream=nobody, media_user=name)


def make(*names: str) -> Flights[Any]:
    """Requests that the engine has been given."""
    flights: Flights[Any] = Flights()
    for name in names:
        flights.add(flight(name))
    flights.take_due()
    return flights


def crash(flights: Flights[Any], *names: str, kill: bool = False) -> list[str]:
    """The engine dies while it computes these; returns who is guilty, and takes them out."""
    batch = frozenset(each.wire_id for each in flights.all() if each.request.request_id in names and each.wire_id)
    guilty = [each.request.request_id for each in flights.lose_engine(Death("", batch, is_from_outside=kill))]
    for name in guilty:
        flights.remove(name)
    return guilty


def due(flights: Flights) -> list[str]:
    """Names of what the engine is given now."""
    requests, _ = flights.take_due()
    return [each.request_id.partition("~")[0] for each in requests]


def say(
    flights: Flights[Any], name: str, *token_ids: int, num_cached: int = 0, scheduled_at: float = 1.0
) -> InFlight[Any] | None:
    """The engine of now produces tokens for a request."""
    (wire_id,) = (each.wire_id for each in flights.all() if each.request.request_id == name)
    output = TokenOutput(wire_id or "", list(token_ids), num_cached_tokens=num_cached, scheduled_at=scheduled_at)
    return flights.receive(output)


def prove(flights: Flights[Any], name: str) -> None:
    """A request gets past the step that crashed, and past the one that was on its way then."""
    for token_id in (5, 6):
        say(flights, name, token_id)


def test_a_request_goes_on_behind_its_output_under_a_new_id() -> None:
    flights: Flights[Any] = Flights()
    flights.add(flight("a", max_tokens=9, seed=3))
    (first,), _ = flights.take_due()
    assert first.output_token_ids == ()
    for token_id in (7, 8):
        assert flights.receive(TokenOutput(first.request_id, [token_id])) is not None
    assert flights.lose_engine(Death("", frozenset(), is_from_outside=True)) == []
    (second,), to_abort = flights.take_due()
    assert second.output_token_ids == (7, 8)
    assert (second.prompt, second.params, second.seed) == (first.prompt, first.params, first.seed)
    assert second.request_id != first.request_id
    assert to_abort == []
    assert flights.receive(TokenOutput(first.request_id, [9])) is None, "a late word of the dead engine"
    assert flights.receive(TokenOutput(second.request_id, [9])) is flights.all()[0]
    assert flights.all()[0].output_token_ids == [7, 8, 9]


def test_what_has_ended_is_aborted_once_and_never_sent_again() -> None:
    flights = make("a", "b", "c")
    wire_id = flights.all()[0].wire_id
    assert flights.remove("a") is not None
    assert flights.remove("a") is None
    assert flights.take_due() == ([], [wire_id])
    flights.remove("b")
    crash(flights, "c")
    assert due(flights) == ["c"]
    assert "a" not in flights and len(flights) == 1


def test_what_comes_while_there_is_no_engine_waits() -> None:
    flights = make("a")
    crash(flights, kill=True)
    flights.add(flight("b"))
    assert flights.num_sent == 0
    assert due(flights) == ["a", "b"]
    assert flights.num_sent == 2


def test_after_a_kill_from_outside_all_go_on_at_once() -> None:
    flights = make("a", "b", "c")
    assert crash(flights, "a", "b", "c", kill=True) == []
    assert due(flights) == ["a", "b", "c"]
    assert flights.num_replays == 3


def test_after_a_crash_its_batch_is_tried_one_by_one() -> None:
    flights = make("a", "b", "c")
    crash(flights, "a", "b")
    flights.add(flight("new"))
    assert due(flights) == ["a"]
    say(flights, "a")
    assert due(flights) == [], "no token yet"
    wire_id = flights.all()[0].wire_id
    prove(flights, "a")
    requests, to_abort = flights.take_due()
    assert [each.request_id for each in requests] == ["b~1"]
    assert to_abort == [wire_id], "it waits until all have been tried"
    prove(flights, "b")
    assert due(flights) == ["a", "c", "new"]
    assert flights.num_sent == 4


def test_who_crashes_it_again_alone_is_guilty() -> None:
    flights = make("a", "b", "poison", "c")
    assert crash(flights, "a", "b", "poison", "c") == []
    num_crashes = 1
    while "poison" in flights:
        (name,) = due(flights)
        if name == "poison":
            num_crashes += 1
            assert crash(flights, name) == ["poison"]
        else:
            prove(flights, name)
    assert num_crashes == 2
    left = set(due(flights))
    while flights.num_sent < 3:
        (name,) = left
        prove(flights, name)
        left = set(due(flights))
    assert {each.request.request_id for each in flights.all()} == {"a", "b", "c"}


def test_two_steps_end_a_suspicion() -> None:
    flights = make("a")
    for _ in range(5):
        assert crash(flights, "a") == []
        assert due(flights) == ["a"]
        say(flights, "a", 1)
        say(flights, "a", 2)


def test_one_step_proves_nothing() -> None:
    """It may be the one that was on its way when the engine died; the step that killed it comes next."""
    flights = make("a", "b")
    say(flights, "a", 1, 2, 3)
    crash(flights, "a", "b")
    assert due(flights) == ["a"]
    say(flights, "a", 4, 5, 6)
    assert due(flights) == []
    assert crash(flights, "a") == ["a"]


def test_it_takes_one_more_step_than_can_be_in_flight() -> None:
    flights: Flights[Any] = Flights(num_steps_in_flight=3)
    flights.add(flight("a"))
    flights.take_due()
    crash(flights, "a")
    flights.take_due()
    for token_id in range(3):
        say(flights, "a", token_id)
    assert flights.all()[0].suspicion > 0
    say(flights, "a", 4)
    assert flights.all()[0].suspicion == 0


def test_nobody_is_guilty_in_company() -> None:
    """The step of one that was taken back may still be running when the next one is tried."""
    flights = make("a", "b")
    crash(flights, "a", "b")
    assert due(flights) == ["a"]
    prove(flights, "a")
    assert due(flights) == ["b"]
    assert flights.lose_engine(Death("", frozenset({"a~1", "b~1"}))) == []
    assert due(flights) == ["b"], "the more suspicious one comes first"
    assert crash(flights, "b") == ["b"]


def test_killed_alone_four_times_is_guilty_after_all() -> None:
    flights = make("a", "b")
    seen = [crash(flights, "a", kill=True) for _ in range(4) if due(flights) or True]
    assert seen == [[], [], [], ["a"]]
    assert due(flights) == ["b"]


def test_an_unreadable_note_blames_all_that_were_sent() -> None:
    flights = make("a", "b")
    assert flights.lose_engine(Death("", None)) == []
    assert due(flights) == ["a"]
    assert [each.request.request_id for each in flights.lose_engine(Death("", None))] == ["a"]


def test_a_trial_ends_with_its_request() -> None:
    flights = make("a", "b")
    crash(flights, "a", "b")
    assert due(flights) == ["a"]
    flights.remove("a")
    requests, to_abort = flights.take_due()
    assert ([each.request_id for each in requests], to_abort) == (["b~1"], ["a~1"])
    flights.remove("b")
    assert len(flights) == flights.num_sent == 0


def test_cached_tokens_and_the_first_step_stay_those_of_the_first_engine() -> None:
    flights = make("a")
    say(flights, "a", 1, num_cached=16, scheduled_at=5.0)
    crash(flights)
    due(flights)
    say(flights, "a", 2, num_cached=0, scheduled_at=9.0)
    assert (flights.all()[0].num_cached_tokens, flights.all()[0].scheduled_at) == (16, 5.0)


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 200), marks=pytest.mark.slow)])
def test_random_lives(seeds: range) -> None:
    """Whatever happens, everybody is sent or waits, nobody twice, and with one poison only that one is guilty."""
    for seed in seeds:
        _Life(random.Random(seed)).live()


class _Life:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.flights: Flights[Any] = Flights()
        self.engine: dict[str, Request] = {}  # what the engine of now works on
        self.said: dict[str, int] = {}
        self.num_added = 0

    def live(self) -> None:
        for _ in range(300):
            move = self.rng.choice([self.add, self.leave, self.step, self.step, self.step, self.kill])
            move()
            self.tell()
        for _ in range(500):
            self.step()
            self.tell()
        assert set(self.said) == {f"r{n}" for n in range(self.num_added)}, "somebody was forgotten"

    def add(self) -> None:
        if self.num_added < 12:
            self.flights.add(flight(f"r{self.num_added}"))
            self.num_added += 1

    def leave(self) -> None:
        if len(self.flights) > 3 and self.rng.random() < 0.3:
            gone = self.rng.choice(self.flights.all())
            self.said.setdefault(gone.request.request_id, 0)
            self.flights.remove(gone.request.request_id)

    def kill(self) -> None:
        if self.rng.random() < 0.2:
            self.die(is_from_outside=True)

    def die(self, *, is_from_outside: bool) -> None:
        guilty = self.flights.lose_engine(Death("", frozenset(self.engine), is_from_outside))
        self.engine.clear()
        for each in guilty:
            assert is_from_outside or each.request.request_id == "r5"
            self.said.setdefault(each.request.request_id, 0)
            self.flights.remove(each.request.request_id)

    def step(self) -> None:
        if any(wire_id.startswith("r5~") for wire_id in self.engine):
            self.die(is_from_outside=False)
            return
        for wire_id in list(self.engine):
            name = wire_id.partition("~")[0]
            if self.flights.receive(TokenOutput(wire_id, [1])) is not None:
                self.said[name] = self.said.get(name, 0) + 1

    def tell(self) -> None:
        requests, to_abort = self.flights.take_due()
        for wire_id in to_abort:
            self.engine.pop(wire_id, None)
        for each in requests:
            name = each.request_id.partition("~")[0]
            assert len(each.output_token_ids) == self.said.get(name, 0)
            assert not any(wire_id.startswith(f"{name}~") for wire_id in self.engine), "sent twice"
            self.engine[each.request_id] = each
        assert len(self.engine) == self.flights.num_sent
