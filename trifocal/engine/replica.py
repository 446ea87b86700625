"""`Replica`: one engine process, started again when it dies, and the requests in flight on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from trifocal.engine import messages
from trifocal.engine.child import Death
from trifocal.engine.flights import Flights, InFlight
from trifocal.engine.limits import Limits
from trifocal.engine.stream import RequestStream
from trifocal.engine.supervisor import State, Supervisor
from trifocal.log import get_logger
from trifocal.types import EngineStats, TokenOutput

logger = get_logger(__name__)
Flight = InFlight[RequestStream]


class Owner(Protocol):
    """Gets the news about the requests of a replica. Every method returns at once."""

    def deliver(self, flight: Flight, output: TokenOutput) -> None:
        """New tokens of a request, or its end."""

    def fail(self, flight: Flight, reason: str) -> None:
        """A request is to blame for the death of engines, or may be, and is given up."""

    def replica_lost(self, replica: Replica, reason: str) -> None:
        """There will be no engine any more for what is in flight on this replica."""


class Replica:
    """The server's side of one engine: what it was sent, what it said last, how long it has been gone.

    Requests outlive the engine process: the next one gets them again. They are the owner's, as are their pixels, so the
    owner may move what is in flight on a lost replica to another. Lifetime: `watch` .. `stop`.
    """

    def __init__(self, supervisor: Supervisor, limits: Limits) -> None:
        self.limits = limits
        self.flights: Flights[RequestStream] = Flights()
        self.death: str | None = None  # why there will be no engine any more
        self._supervisor = supervisor
        self._idle_stats = self._stats = EngineStats(kv_blocks_total=limits.num_blocks)
        self._reports: list[asyncio.Future[None]] = []
        self._owner: Owner

    def watch(self, owner: Owner) -> None:
        """Keep the engine running from now on, and tell `owner` what it says."""
        self._owner = owner
        self._supervisor.watch(self)

    async def stop(self) -> None:
        """End the engine process; safe to call twice."""
        self._answer_reports()
        await self._supervisor.stop()

    # ------------------------------------------------------------------------------------------ requests

    def add(self, flights: Iterable[Flight]) -> None:
        """Send requests to the engine, or keep them for the next one if there is none at the moment."""
        for flight in flights:
            self.flights.add(flight)
        self._tell_engine()

    def remove(self, request_ids: Iterable[str]) -> list[Flight]:
        """Forget those of these requests that are here, and return them; the engine aborts those still running."""
        removed = [self.flights.remove(request_id) for request_id in request_ids]
        self._tell_engine()
        return [flight for flight in removed if flight is not None]

    def _tell_engine(self) -> None:
        """Send what there is to send; what cannot be sent now is sent when an engine is ready."""
        if not self.is_ready:
            return
        requests, to_abort = self.flights.take_due()
        if to_abort:
            self._supervisor.send(messages.AbortRequests(to_abort))
        for request in requests:
            self._supervisor.send(messages.AddRequest(request))

    # ------------------------------------------------------------------------------------------ `supervisor.Listener`

    def is_busy(self) -> bool:
        return self.flights.num_sent > 0

    def receive(self, message: messages.FromEngine) -> None:
        if isinstance(message, messages.Report):
            self._stats = message.stats
            if self._reports and not (report := self._reports.pop(0)).done():
                report.set_result(None)
        elif isinstance(message, messages.Outputs):
            self._stats = message.stats
            for output in message.outputs:
                flight = self.flights.receive(output)
                if flight is not None:  # else its reader has closed it
                    self._owner.deliver(flight, output)
            self._tell_engine()

    def engine_died(self, death: Death) -> None:
        self._stats = self._idle_stats
        self._answer_reports()
        for flight in self.flights.lose_engine(death):
            logger.error("request %s crashed the engine twice and is not tried again", flight.request.request_id)
            self._owner.fail(flight, "the engine crashed twice while it worked on this request")

    def engine_started(self) -> None:
        if len(self.flights):
            logger.warning("%d requests go on in the new engine", len(self.flights))
        self._tell_engine()

    def engine_lost(self, reason: str) -> None:
        self.death = reason
        self._owner.replica_lost(self, reason)
        self._answer_reports()

    # ------------------------------------------------------------------------------------------ state

    @property
    def is_ready(self) -> bool:
        """Whether an engine is running at this moment; if not, requests wait for the next one."""
        return self._supervisor.state is State.RUNNING

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine that runs or is starting; None between two."""
        return self._supervisor.engine_pid

    @property
    def last_stats(self) -> EngineStats:
        """State after the last step, without asking the engine."""
        return replace(
            self._stats,
            num_waiting=self._stats.num_waiting + len(self.flights) - self.flights.num_sent,
            num_restarts=self._supervisor.num_restarts,
            num_replays=self.flights.num_replays,
        )

    async def stats(self) -> EngineStats:
        """Ask the engine; it answers between two steps. Without an engine: `last_stats`."""
        if self.is_ready:
            report: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._reports.append(report)
            self._supervisor.send(messages.QueryStats())
            await report
        return self.last_stats

    def _answer_reports(self) -> None:
        for report in self._reports:
            if not report.done():
                report.set_result(None)
        self._reports.clear()
