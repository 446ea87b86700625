"""The engine process: `python -m trifocal.engine.process SOCKET NOTE TRACE`, started by the supervisor.

The arguments are inherited file descriptors: a `Channel` to the server process, whose first message is the
configuration, a `StepNote` and a `CrashTrace`. It ends when it is told to, when it fails, and with its parent, however
that ends.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from trifocal import log
from trifocal.engine import messages
from trifocal.engine.channel import Channel
from trifocal.engine.engine import Engine
from trifocal.engine.fault_injection import injected_fault
from trifocal.engine.step_note import StepNote
from trifocal.errors import ConfigError, RequestError
from trifocal.executor.base import EXECUTORS
from trifocal.malloc import few_heaps, few_primitives, give_back
from trifocal.subprocesses import end_with_parent
from trifocal.types import EngineStats, StepPlan, TokenOutput

_IDLE_S = 1.0  # without work for so long, there is time to tidy up
_BUSY_S = 10.0  # seconds of work between: steps of all sizes leave heaps full of holes, and fresh pages cost little
logger = log.get_logger(__name__)


class EngineProcess:
    """The loop around `Engine`: take messages, step, send outputs."""

    def __init__(self, channel: Channel, note: StepNote) -> None:
        self._channel = channel
        self._note = note
        self._inject: Callable[[StepPlan], None] | None = None
        self._sent_stats = EngineStats()
        self.is_ready = False

    def run(self) -> None:
        """Serve until told to stop. Raises `ConfigError` if the engine cannot start."""
        EXECUTORS.get("uni")  # imports torch, while the server still reads the tokenizer
        config = messages.decode_config(self._channel.receive(None) or b"")
        self._inject = injected_fault(config.supervision)
        engine = Engine(config, self._begin_step)
        self._send(messages.Ready(engine.limits))
        self.is_ready = True
        tidied = monotonic()
        while self._take_messages(engine):
            self._send_outputs(engine, engine.step())
            if monotonic() - tidied > _BUSY_S:
                give_back()
                tidied = monotonic()
        engine.shutdown()

    def _begin_step(self, plans: Sequence[StepPlan]) -> None:
        """Called before each step (`Executor.on_step`): whatever kills a worker now is in one of `plans`."""
        self._note.write({seq.request_id for plan in plans for seq in plan.scheduled})
        if self._inject is not None:
            self._inject(plans[-1])

    def _take_messages(self, engine: Engine) -> bool:
        """Handle what has arrived, waiting while the engine has nothing to do; False when it is time to end."""
        while True:
            if not engine.has_work:
                self._note.write([])
            data = self._channel.receive(0.0 if engine.has_work else _IDLE_S)
            if data is None:
                if engine.has_work:
                    return True
                give_back()
                data = self._channel.receive(None) or b""
            message = messages.decode_to_engine(data)
            if isinstance(message, messages.Stop):
                return False
            self._handle(engine, message)

    def _handle(self, engine: Engine, message: messages.ToEngine) -> None:
        if isinstance(message, messages.AddRequest):
            self._add(engine, message)
        elif isinstance(message, messages.AbortRequests):
            for request_id in message.request_ids:
                engine.abort(request_id)
        elif isinstance(message, messages.QueryStats):
            self._send(messages.Report(engine.stats()))

    def _add(self, engine: Engine, message: messages.AddRequest) -> None:
        try:
            engine.add(message.request)
            return
        except RequestError as error:
            reason = str(error)
        except Exception:  # whatever is wrong with it, it is wrong with this request alone
            reason = "a request could not be added to the engine"
            logger.exception(reason)
        self._send_outputs(engine, [TokenOutput(message.request.request_id, [], None, "error", reason)])

    def _send_outputs(self, engine: Engine, outputs: list[TokenOutput]) -> None:
        stats = engine.stats()
        if outputs or stats != self._sent_stats:
            self._send(messages.Outputs(outputs, stats))
            self._sent_stats = stats

    def _send(self, message: messages.FromEngine) -> None:
        self._channel.send(messages.encode(message))


def main(socket: str, note: str, trace: str) -> int:
    """Run the engine process; returns its exit status."""
    end_with_parent(signal.SIGKILL)()
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; the server decides what they mean
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(int(trace))
    log.configure()
    few_heaps()
    few_primitives()
    channel, process = Channel(int(socket)), None
    try:
        process = EngineProcess(channel, StepNote(int(note)))
        process.run()
        return 0
    except EOFError:  # the server process is gone
        return 1
    except ConfigError as error:
        return _say(channel, messages.Failed(str(error), is_config=True))
    except Exception as error:
        logger.exception("the engine failed")
        kind = type(error).__name__  # that of a step may quote a request, and the log tells its way
        reason = f"{kind} in a step" if process is not None and process.is_ready else f"{kind}: {error}"
        return _say(channel, messages.Failed(reason, is_config=False))


def _say(channel: Channel, message: messages.Failed) -> int:
    with suppress(EOFError):
        channel.send(messages.encode(message))
    return 2 if message.is_config else 1


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # a step that still runs, or libraries that clean up, must not hold the end up
