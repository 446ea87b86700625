"""Replay: what every request in flight needs to outlive the engine, and the order in which a new engine gets them.

As a rule the engine is given everything at once. After a crash it may be one of the requests that kills it, so those
that were being computed are tried first: each alone, until it has got past where the engine died and is above
suspicion. Who is in the batch of two crashes in a row, the second time alone, is guilty. Being killed from outside is
half as suspicious as a crash: an operator may do it again and again, but so may a guard against memory hogs that we do
not know of.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from trifocal.engine.child import Death
from trifocal.engine.output import Choice
from trifocal.types import Request, TokenOutput

S = TypeVar("S")  # what takes the text of a sequence: `RequestStream` or `Answer`
_CRASH, _KILL = 2, 1
_IS_SUSPECT, _IS_GUILTY = 2, 4


@dataclass(eq=False)
class InFlight(Generic[S]):
    """One sequence between `submit` and its end: how to start it again, and where it has got to.

    In a server its pixels are in the media store, held for `media_user`, and nowhere else.
    """

    request: Request
    choice: Choice
    stream: S
    media_user: str = ""
    output_token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None  # this and the next one as the first engine that gave it a token says
    scheduled_at: float = 0.0
    suspicion: int = 0
    num_steps_since_crash: int = 0  # those that gave it tokens; one may give several
    num_sent: int = 0
    wire_id: str | None = None  # what the engine of now calls it; None if it was not given it

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what killed an engine."""
        return self.suspicion >= _IS_SUSPECT

    def to_send(self) -> Request:
        """The request as the engine is to go on with it, under an id that no engine has seen."""
        self.wire_id = f"{self.request.request_id}~{self.num_sent}"
        self.num_sent += 1
        return replace(self.request, request_id=self.wire_id, output_token_ids=tuple(self.output_token_ids))


class Flights(Generic[S]):
    """Every request in flight, and which of them the engine has been given. Policy only: no process, no socket.

    After any change `take_due` says what the engine is to be told. Up to `num_steps_in_flight` steps that were computed
    are on their way to us when the next one crashes: it takes one more to prove that a request got past it.
    """

    def __init__(self, num_steps_in_flight: int = 1) -> None:
        self._num_steps_of_proof = num_steps_in_flight + 1
        self._all: dict[str, InFlight[S]] = {}  # by request id, in order of arrival
        self._sent: dict[str, InFlight[S]] = {}  # by wire id
        self._suspects: deque[InFlight[S]] = deque()
        self._on_trial: InFlight[S] | None = None
        self._to_abort: list[str] = []
        self.num_replays = 0  # how often a dead engine's request was left to the next engine

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._all

    def all(self) -> list[InFlight[S]]:
        """Everything in flight, oldest first."""
        return list(self._all.values())

    @property
    def num_sent(self) -> int:
        """Requests that the engine is working on."""
        return len(self._sent)

    def add(self, flight: InFlight[S]) -> None:
        """A new request. Its id must not be in use."""
        self._all[flight.request.request_id] = flight

    def remove(self, request_id: str) -> InFlight[S] | None:
        """A request has ended or was aborted; None if it had before."""
        flight = self._all.pop(request_id, None)
        if flight is not None:
            self._take_back(flight)
            if flight in self._suspects:
                self._suspects.remove(flight)
            if flight is self._on_trial:
                self._on_trial = None
        return flight

    def _take_back(self, flight: InFlight[S]) -> None:
        if flight.wire_id is not None:
            del self._sent[flight.wire_id]
            self._to_abort.append(flight.wire_id)
            flight.wire_id = None

    def find(self, wire_id: str) -> InFlight[S] | None:
        """The request that the engine knows by this id; None if it has ended or was aborted."""
        return self._sent.get(wire_id)

    def receive(self, output: TokenOutput) -> InFlight[S] | None:
        """The request of an output, whose tokens are noted; None if it has ended or was aborted."""
        flight = self._sent.get(output.request_id)
        if flight is None:
            return None
        if output.token_ids or output.finish_reason not in (None, "error"):
            flight.output_token_ids += output.token_ids
            if flight.num_cached_tokens is None:
                flight.num_cached_tokens = output.num_cached_tokens
                flight.scheduled_at = output.scheduled_at
            flight.num_steps_since_crash += 1
            if flight.suspicion and flight.num_steps_since_crash >= self._num_steps_of_proof:
                self._acquit(flight)
        return flight

    def _acquit(self, flight: InFlight[S]) -> None:
        flight.suspicion = 0
        if flight is not self._on_trial:
            return
        self._on_trial = None
        if self._suspects:  # they are to be alone as well; what was computed for it stays in the engine's caches
            self._take_back(flight)

    def lose_engine(self, death: Death) -> list[InFlight[S]]:
        """The engine is dead, and with it all that it was given. Returns whom to blame; the caller removes them."""
        batch = [flight for wire_id, flight in self._sent.items() if death.batch is None or wire_id in death.batch]
        for flight in batch:
            flight.suspicion += _KILL if death.is_from_outside else _CRASH
            flight.num_steps_since_crash = 0
        was_alone = len(self._sent if death.batch is None else death.batch) == 1
        self.num_replays += len(self._sent)
        for flight in self._sent.values():
            flight.wire_id = None
        self._sent.clear()
        self._to_abort.clear()
        self._on_trial = None
        suspects = [flight for flight in self._all.values() if flight.is_suspect]
        self._suspects = deque(sorted(suspects, key=lambda flight: -flight.suspicion))
        return [flight for flight in batch if was_alone and flight.suspicion >= _IS_GUILTY]

    def take_due(self) -> tuple[list[Request], list[str]]:
        """What to send to a running engine now: requests to work on, ids to forget (these first)."""
        to_abort, self._to_abort = self._to_abort, []
        due: list[InFlight[S]] = []
        if self._on_trial is None and self._suspects:
            self._on_trial = self._suspects.popleft()
            due = [self._on_trial]
        elif self._on_trial is None and len(self._sent) < len(self._all):
            due = [flight for flight in self._all.values() if flight.wire_id is None]
        requests = [flight.to_send() for flight in due]
        self._sent |= {flight.wire_id: flight for flight in due if flight.wire_id is not None}
        return requests, to_abort
