"""What a hostile template cannot do: run for ever, take all memory, stop others. Each test fails without its limit."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests import tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.helpers.pool import Helper
from trifocal.prompt.builder import PromptBuilder
from trifocal.prompt.sandbox import RenderedTooLongError, RenderTimeoutError, Sandbox
from trifocal.prompt.template import ChatTemplate

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ON_DEMAND = "{% if 'spin' in messages[0].content %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"


@pytest.fixture
def sandbox() -> Any:
    made = Sandbox(max_seconds=0.3)
    yield made
    made.close()


def pids(sandbox: Sandbox) -> list[int]:
    return [renderer.pid for renderer in sandbox._pool._idle]


def num_waiting(renderer: Helper) -> int:
    """Bytes that it has been sent and has not read."""
    count = array.array("i", [0])
    fcntl.ioctl(renderer._jobs, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{% macro f(n) %}{% for i in range(2) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(60) }}",
        "{{ 10 ** (10 ** exponent) }}",  # one operation in C, which holds the interpreter
        "{{ 10 ** (10 ** 8) }}",  # the same while the template is compiled
        "{% for i in range(10 ** 5) %}{{ text | replace('a', 'aa') | replace('a', '') }}{% endfor %}",
        "{{ text.replace('', text) | length }}{{ text.replace('', text).count('ab' * 999) }}" * 99,
    ],
    ids=["loop", "recursion", "power", "constant", "filters", "methods"],
)
def test_no_template_runs_for_ever(sandbox: Sandbox, source: str) -> None:
    context = {"exponent": 8, "text": "a" * 9000}
    with pytest.raises(RenderTimeoutError, match=r"was stopped: .* took more than 0\.3 s") as caught:
        sandbox.render(source, context, max_chars=1000)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert sandbox.render("{{ exponent }}", context, max_chars=1000) == "8"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * size }}",
        "{{ 'x' | center(size) }}",
        "{{ '%2000000000d' % 1 }}",
        "{% set n = namespace(x='x' * 1000) %}{% for i in range(30) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set x = ['x' * 50000000] %}{% for i in range(99) %}{{ (x * i) | join | length }}{% endfor %}",
    ],
)
def test_no_template_takes_all_memory(source: str) -> None:
    sandbox = Sandbox(max_seconds=20)
    try:
        with pytest.raises(RequestError, match="too much memory") as caught:
            sandbox.render(source, {"size": 2_000_000_000}, max_chars=1000)
        assert caught.value.status == 400
        assert sandbox.render("{{ size }}", {"size": 1}, max_chars=1000) == "1"
    finally:
        sandbox.close()


def test_no_template_writes_without_end(sandbox: Sandbox) -> None:
    with pytest.raises(RenderedTooLongError):
        sandbox.render("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", {}, 10_000)
    assert len(pids(sandbox)) == 1, "the process lives on"


def test_others_render_meanwhile() -> None:
    """An endless template does not hold up the rendering beside it: it is the last to come back."""
    sandbox = Sandbox(max_seconds=2)
    order: list[str] = []

    def render(source: str) -> None:
        try:
            sandbox.render(source, {}, max_chars=1000)
        except RenderTimeoutError:
            order.append("endless")
        else:
            order.append("usual")

    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(render, [ENDLESS, "a", "b"]))
    finally:
        sandbox.close()
    assert order == ["usual", "usual", "endless"]


def test_processes_are_used_again(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda n: sandbox.render("{{ n }}", {"n": n}, max_chars=1000), range(60)))
    assert texts == [str(n) for n in range(60)]
    assert 1 <= len(pids(sandbox)) <= 3


def test_a_process_writes_nothing_into_the_log(sandbox: Sandbox) -> None:
    """What Python says of an end that nobody foresaw would have file paths in it."""
    sandbox.render("a", {}, max_chars=9)
    [pid] = pids(sandbox)
    assert os.readlink(f"/proc/{pid}/fd/2") == os.devnull


def test_a_killed_process_is_replaced(sandbox: Sandbox) -> None:
    sandbox.render("a", {}, max_chars=9)
    [pid] = pids(sandbox)
    os.kill(pid, signal.SIGKILL)
    sandbox._pool._idle[0]._process.wait()
    assert sandbox.render("b", {}, max_chars=9) == "b"
    assert pids(sandbox) != [pid]


def test_a_process_that_dies_while_it_renders(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(1) as pool:
        sandbox.render("a", {}, max_chars=9)
        [pid] = pids(sandbox)
        os.kill(pid, signal.SIGSTOP)  # so that the rendering is under way when it dies
        [renderer] = sandbox._pool._idle
        rendering = pool.submit(sandbox.render, "b", {}, 9)
        while not num_waiting(renderer):  # until then it may still be found dead, and replaced
            sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError, match="ended"):
            rendering.result()
    assert sandbox.render("b", {}, max_chars=9) == "b"


def test_interrupting_the_terminal_leaves_it_running(sandbox: Sandbox) -> None:
    sandbox.render("a", {}, max_chars=9)
    [pid] = pids(sandbox)
    os.kill(pid, signal.SIGINT)
    assert sandbox.render("b", {}, max_chars=9) == "b"
    assert pids(sandbox) == [pid]


def test_processes_end_with_the_program() -> None:
    """Also where it is killed: their input ends."""
    code = (
        "import os, signal\nfrom trifocal.prompt.sandbox import SANDBOX\nSANDBOX.render('a', {}, 9)\n"
        "print(*SANDBOX._pool.pids, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for end in ("", "os.kill(os.getpid(), signal.SIGKILL)"):
        done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, env=environment)
        assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
        assert not is_alive(int(done.stdout))


def is_alive(pid: int) -> bool:
    """Whether the process still runs after some seconds to end."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
        subprocess.run(["sleep", "0.1"], check=True)
    return True


def test_values_travel_unchanged(sandbox: Sandbox) -> None:
    context = {"v": {"a": [1, 2.5, None, True, "é\n\u2028\ud800\uf8e0"], "n": 10**30}}
    assert sandbox.render("{{ v | tojson }}", context, max_chars=999) == (
        '{"a": [1, 2.5, null, true, "é\\n\u2028\ud800\uf8e0"], "n": 1000000000000000000000000000000}'
    )
    with pytest.raises(RequestError, match="variables must be JSON: .* object is not"):
        sandbox.render("{{ v }}", {"v": object()}, max_chars=999)


# ----------------------------------------------------------------------------------------------- templates


def test_a_template_that_never_ends_is_told_at_the_start(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="chat template was stopped"):
        ChatTemplate(ENDLESS, {}, sandbox)


def test_the_event_loop_goes_on_while_a_template_spins(tmp_path: Path) -> None:
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path))))
    builder = PromptBuilder(config, chat_template=ON_DEMAND)

    async def run() -> tuple[int, Any, Any]:
        ticks = 0
        spinning = asyncio.ensure_future(builder.chat([{"role": "user", "content": "spin"}]))
        usual = asyncio.ensure_future(builder.chat([{"role": "user", "content": "hello"}]))
        while not spinning.done():
            await asyncio.sleep(0.01)
            ticks += 1
        results = await asyncio.gather(spinning, usual, return_exceptions=True)
        await builder.aclose()
        return ticks, *results

    ticks, spun, usual = asyncio.run(run())
    assert isinstance(spun, RequestError) and spun.status == 400 and "was stopped" in spun.message
    assert builder.tokenizer.decode(usual.token_ids) == "hello"
    assert ticks > 20
