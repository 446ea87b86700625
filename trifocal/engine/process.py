"""The engine process: `python -m trifocal.engine.process FOLDER`, started by the supervisor.

It talks over one ZeroMQ PAIR socket in the private FOLDER; its first message is the configuration. It ends when it is
told to, and when its parent is gone: then it also removes the folder, so that nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic

import zmq

from trifocal import log
from trifocal.engine import messages
from trifocal.engine.engine import Engine
from trifocal.engine.media_store import map_pixels, remove_folder
from trifocal.types import ConfigError, EngineStats, RequestError, TokenOutput

logger = log.get_logger(__name__)

SOCKET_NAME = "engine.sock"
_PARENT_CHECK_S = 1.0


class EngineProcess:
    """The loop around `Engine`: take messages, step, send outputs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parent = os.getppid()
        self._checked_parent = monotonic()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(f"ipc://{folder / SOCKET_NAME}")
        self._sent_stats = EngineStats()

    def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        config = messages.decode_config(self._socket.recv())
        try:
            engine = Engine(config)
        except ConfigError as error:
            self._send(messages.Failed(str(error), is_config=True))
            return 2
        self._send(messages.Ready(engine.limits))
        try:
            while self._take_messages(engine):
                outputs = engine.step()
                self._send_outputs(engine, outputs)
        finally:
            engine.shutdown()
        return 0

    def _take_messages(self, engine: Engine) -> bool:
        """Handle what has arrived, waiting while the engine has nothing to do; False when it is time to end."""
        while True:
            if not self._parent_lives():
                remove_folder(self._folder)
                return False
            if not self._socket.poll(0 if engine.has_work else int(_PARENT_CHECK_S * 1000)):
                if engine.has_work:
                    return True
                continue
            message = messages.decode_to_engine(self._socket.recv())
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
            request = message.unpack()
            media = tuple(map_pixels(item) for item in request.prompt.media)
            engine.add(replace(request, prompt=replace(request.prompt, media=media)))
        except (RequestError, OSError, ValueError) as error:  # the latter two: its pixels are gone or cut off
            output = TokenOutput(message.request_id, [], finish_reason="error", stop_reason=str(error))
            self._send_outputs(engine, [output])

    def _send_outputs(self, engine: Engine, outputs: list[TokenOutput]) -> None:
        stats = engine.stats()
        if outputs or stats != self._sent_stats:
            self._send(messages.Outputs(outputs, stats))
            self._sent_stats = stats

    def _send(self, message: messages.FromEngine) -> None:
        self._socket.send(messages.encode(message))

    def _parent_lives(self) -> bool:
        now = monotonic()
        if now - self._checked_parent < _PARENT_CHECK_S:
            return True
        self._checked_parent = now
        return os.getppid() == self._parent

    def close(self) -> None:
        """Send what is queued and close the socket."""
        self._socket.close()
        self._context.term()

    def report_failure(self, error: BaseException) -> None:
        """Tell the server why the engine ends."""
        self._send(messages.Failed(f"{type(error).__name__}: {error}", is_config=False))


def main(folder: str) -> int:
    """Run the engine process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides what it means
    log.configure()
    process = EngineProcess(Path(folder))
    try:
        return process.run()
    except Exception as error:
        logger.exception("the engine failed")
        process.report_failure(error)
        return 1
    finally:
        process.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
