"""`SharedEngine`: the engine for all threads of this process. Each opens a `Call`; their requests share one batch.

One thread of its own plans, steps and turns tokens into text, and no other touches what it works on: callers put
commands into a queue and find their results in another. So whatever happens to a caller, a KeyboardInterrupt at any
point included, the engine and the other callers go on.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from time import monotonic
from typing import TypeVar

from trifocal.config.engine import EngineConfig
from trifocal.engine.child import Death
from trifocal.engine.engine import Engine
from trifocal.engine.flights import Flights, InFlight
from trifocal.engine.limits import check
from trifocal.engine.output import Answer, Choice, expand
from trifocal.errors import EngineDeadError, RequestError
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.threads import end_at_exit
from trifocal.tokenizer import Tokenizer
from trifocal.types import EngineStats, Prompt, Request, RequestMetrics, RequestOutput, StepPlan, TokenOutput

T = TypeVar("T")
logger = get_logger(__name__)
_WAKE_S = 0.2  # so often a waiting caller looks up: an exception that another thread sends to it is not seen before


class Call:
    """The requests of one caller, for one thread at a time: `prepare` some, `submit` them, `wait` for results.

    Leaving the `with` block gives up what is still running.
    """

    def __init__(self, shared: SharedEngine) -> None:
        self.num_open = 0  # sequences that were prepared and have not ended
        self._shared = shared
        self._prepared: list[InFlight[CallAnswer]] = []
        self._events: SimpleQueue[CallAnswer | Exception] = SimpleQueue()
        self.request_ids: set[str] = set()  # those that are in flight; the engine's thread keeps them

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        if self.num_open:
            self._shared.give_up(self)

    def prepare(self, prompt: Prompt, params: SamplingParams, metrics: RequestMetrics) -> RequestOutput:
        """Make a request ready; the result grows once it was submitted. Raises `RequestError` if it can never run."""
        answer = CallAnswer(self, self._shared.new_id(), prompt, params.n, metrics)
        self._prepared += self._shared.expand(answer, prompt, params)
        self.num_open += params.n
        return answer.output

    def submit(self) -> None:
        """Give the engine what was prepared, all at once."""
        prepared, self._prepared = self._prepared, []
        if prepared:
            self._shared.submit(self, prepared)

    def wait(self) -> int:
        """Wait until something has ended; returns how many results are complete since the last time.

        Raises `RequestError` if one of the requests failed, `EngineDeadError` if nothing can be computed any more.
        """
        num_finished, event = 0, self._shared.receive(self._events)
        while True:
            if isinstance(event, Exception):
                self.num_open = 0  # the engine has forgotten the others as well
                raise event
            num_finished += 1
            self.num_open -= len(event.output.outputs)
            try:
                event = self._events.get_nowait()
            except Empty:
                return num_finished

    def tell(self, event: CallAnswer | Exception) -> None:
        """Called by the engine's thread: an answer is complete, or what ends the whole call."""
        self._events.put(event)


class CallAnswer(Answer):
    """An answer that knows whose it is."""

    def __init__(self, call: Call, request_id: str, prompt: Prompt, num_choices: int, metrics: RequestMetrics) -> None:
        super().__init__(request_id, [prompt], num_choices, metrics=metrics)
        self.call = call
        self.output = self.outputs[0]


class SharedEngine:
    """Owns an `Engine`. Safe to use from any number of threads; not from a process that was forked after it was made.

    A step that raises fails nobody at first: every request starts over behind its tokens, those of that step one by
    one, and who is alone in a second step that raises gets a `RequestError`. See `replay`.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer) -> None:
        """Load the model. Raises `ConfigError`."""
        self.engine = Engine(config, self._begin_step)
        self._config = config
        self._tokenizer = tokenizer
        self._ids = count()
        self._rng = random.Random(config.model.seed)
        self._pid = os.getpid()
        # Of all queues and locks only this queue's `put` may be called where anything may have been interrupted: in
        # finalizers and behind exceptions that come at any point.
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._flights: Flights[CallAnswer] = Flights()
        self._begun: list[str] = []  # what the engine calls the sequences of the last step that was begun
        self._num_restarts = 0
        self._is_stopping = False
        self._death: str | None = None
        self._thread = Thread(target=self._run, name="trifocal-engine", daemon=True)
        self._thread.start()
        end_at_exit(self)

    # ------------------------------------------------------------------------------------------ for callers

    def check_alive(self) -> None:
        """Raises `EngineDeadError` if nothing can be computed any more, or not in this process."""
        if self.is_inherited:
            raise EngineDeadError(
                f"this LLM belongs to process {self._pid}, and this process is a fork without its threads. Make one "
                "LLM in each process. Start the processes by multiprocessing's 'spawn' if there is an LLM already"
            )
        if self._death is not None:
            raise EngineDeadError(self._death)

    def open_call(self) -> Call:
        """A new caller. Raises `EngineDeadError`."""
        self.check_alive()
        return Call(self)

    def new_id(self) -> str:
        """A request id that no other request has."""
        return str(next(self._ids))

    def expand(self, answer: CallAnswer, prompt: Prompt, params: SamplingParams) -> list[InFlight[CallAnswer]]:
        """One sequence for each choice of a request. Raises `RequestError` if it can never run."""
        check(prompt, params, self.engine.limits)
        requests = expand(
            answer.output.request_id,
            prompt,
            params,
            eos_ids=self._config.model.spec.eos_token_ids,
            max_model_len=self.engine.limits.max_model_len,
            rng=self._rng,
            tokenizer=self._tokenizer,
        )
        return [
            InFlight(request, Choice(index, request, self._tokenizer), answer) for index, request in enumerate(requests)
        ]

    def submit(self, call: Call, flights: list[InFlight[CallAnswer]]) -> None:
        """Let these join the batch."""
        self._commands.put(lambda: self._add(call, flights))

    def give_up(self, call: Call) -> None:
        """Abort what a call has in flight."""
        self._commands.put(lambda: self._drop(call))

    def receive(self, events: SimpleQueue[T]) -> T:
        """The next event, waiting for it. Raises `EngineDeadError` if none can come any more."""
        while True:
            is_alive = self._thread.is_alive()
            try:
                return events.get(timeout=_WAKE_S) if is_alive else events.get_nowait()
            except Empty:
                if not is_alive:
                    self.check_alive()
                    raise EngineDeadError("the engine's thread has ended") from None

    def stats(self) -> EngineStats:
        """Counters and gauges between two steps, behind all that was asked for before; the last ones at the end."""
        if not self.is_inherited and self._death is None:
            answer: SimpleQueue[EngineStats] = SimpleQueue()
            self._commands.put(lambda: answer.put(self._stats()))
            try:
                return self.receive(answer)
            except EngineDeadError:
                pass
        return self._stats()

    def stop(self) -> None:
        """Have calls that run raise `EngineDeadError`, and memory given back; returns at once."""
        self._commands.put(self._stop)

    def end(self) -> None:
        """`stop`, and wait until it is done. Safe to call twice; does nothing in a forked process."""
        if self.is_inherited:
            return
        self.stop()
        if self._thread is not current_thread():
            self._thread.join()

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one in which the threads are."""
        return os.getpid() != self._pid

    # ------------------------------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        reason = "the LLM has been shut down"
        try:
            while self._serve_commands():
                self._step()
        except BaseException as error:
            logger.exception("the engine's thread failed")
            reason = f"the engine failed and could not be started again ({type(error).__name__}: {error})"
        self._end(reason)

    def _serve_commands(self) -> bool:
        """Do what callers ask, waiting for that while there is nothing to compute; False when it is time to end."""
        while not self._is_stopping:
            self._tell_engine()
            try:
                self._commands.get(block=not self.engine.has_work)()
            except Empty:
                return True
        return False

    def _stop(self) -> None:
        self._is_stopping = True

    def _stats(self) -> EngineStats:
        return replace(self.engine.stats(), num_restarts=self._num_restarts, num_replays=self._flights.num_replays)

    def _add(self, call: Call, flights: list[InFlight[CallAnswer]]) -> None:
        if self._death is not None:
            call.tell(EngineDeadError(self._death))
            return
        now = monotonic()
        for flight in flights:
            flight.stream.output.metrics.queued_ts = now
            call.request_ids.add(flight.request.request_id)
            self._flights.add(flight)

    def _drop(self, call: Call) -> None:
        for request_id in call.request_ids:
            self._flights.remove(request_id)
        call.request_ids.clear()

    def _tell_engine(self) -> None:
        while True:
            requests, to_abort = self._flights.take_due()
            if not requests and not to_abort:
                return
            for request_id in to_abort:
                self.engine.abort(request_id)
            for request in requests:
                self._begin(request)

    def _begin(self, request: Request) -> None:
        try:
            self.engine.add(request)
        except Exception as error:
            flight = self._flights.find(request.request_id)
            if flight is not None:
                self._fail(flight, error)

    def _begin_step(self, plans: Sequence[StepPlan]) -> None:
        """Called by the executor before each step, in its own thread."""
        self._begun = [seq.request_id for plan in plans for seq in plan.scheduled]
        for new in plans[-1].new:
            flight = self._flights.find(new.request.request_id)
            if flight is not None:
                metrics = flight.stream.output.metrics
                metrics.scheduled_ts = metrics.scheduled_ts or monotonic()

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except Exception as error:
            self._recover(error)
            return
        now = monotonic()
        for output in outputs:
            flight = self._flights.receive(output)
            if flight is None:  # given up
                continue
            try:
                self._deliver(flight, output, now)
            except Exception as error:
                self._fail(flight, error)

    def _deliver(self, flight: InFlight[CallAnswer], output: TokenOutput, now: float) -> None:
        answer = flight.stream
        if output.finish_reason == "error":
            raise RequestError(f"prompt {answer.output.request_id}: {output.stop_reason}", status=500)
        answer.count(flight.choice.index, len(output.token_ids), now)
        if output.num_cached_tokens != flight.num_cached_tokens:  # it was started again, and found its own blocks
            output = replace(output, num_cached_tokens=flight.num_cached_tokens or 0)
        delta = flight.choice.feed(output)
        if delta is None:
            return
        answer.extend(delta, now)
        if delta.finish_reason is not None:  # by the engine, or by a stop string, of which it does not know
            self._flights.remove(flight.request.request_id)
            answer.call.request_ids.discard(flight.request.request_id)
            if answer.output.finished:
                answer.call.tell(answer)

    def _fail(self, flight: InFlight[CallAnswer], error: Exception) -> None:
        """End the call that a sequence belongs to."""
        call = flight.stream.call
        self._drop(call)
        call.tell(error)

    def _recover(self, error: Exception) -> None:
        """Start over after a step that raised."""
        logger.error("a step failed; its requests are tried again one by one", exc_info=error)
        batch = frozenset(self._begun) if any(map(self._flights.find, self._begun)) else None
        self.engine.restart()
        self._num_restarts += 1
        reason = f"{type(error).__name__}: {error}"
        for flight in self._flights.lose_engine(Death(reason, batch)):
            name = f"prompt {flight.stream.output.request_id}"
            failure = RequestError(
                f"{name}: a step failed twice with this prompt, the second time with it alone ({reason})",
                status=500,
                code="engine_fault",
            )
            failure.__cause__ = error
            self._fail(flight, failure)

    def _end(self, reason: str) -> None:
        """The last thing that the thread does: nobody is left waiting, and memory is given back."""
        self._death = reason  # from here on nothing is put into the queue that is not looked at below, or by its caller
        for call in {flight.stream.call for flight in self._flights.all()}:
            self._drop(call)
            call.tell(EngineDeadError(reason))
        if self._is_stopping:  # otherwise the engine is in no state to be told anything
            self._tell_engine()
        while not self._commands.empty():
            self._commands.get()()
        self.engine.shutdown()
