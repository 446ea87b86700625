"""One `LLM` in many threads: own answers for each, and none that fails, is interrupted or ends disturbs the others."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.models.engine_runs import GREEDY, is_idle, mixed_prompts, picture, tokens, turn
from tests.models.families import ENTRIES
from trifocal.errors import EngineDeadError, RequestError
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import StepPlan, StepResult

IMAGE, VIDEO = ENTRIES["qwen2_5_vl"].image, ENTRIES["qwen2_5_vl"].video
SEEDED = SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=15, ignore_eos=True, logprobs=1)
PAIR = SamplingParams(n=2, temperature=0.8, seed=9, max_tokens=9, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=3500, ignore_eos=True)
TIMEOUT_S = 60


class InThread(threading.Thread):
    """A call in a thread of its own; what it returned or raised is in `outcome`."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.outcome: Future[Any] = Future()
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self.outcome.set_result(self._call())
        except BaseException as error:
            self.outcome.set_exception(error)

    def result(self) -> Any:
        return self.outcome.result(TIMEOUT_S)

    def error(self) -> BaseException | None:
        return self.outcome.exception(TIMEOUT_S)

    def interrupt(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(KeyboardInterrupt))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def generate(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[list[list[int]]]:
    """Tokens of all choices of each prompt."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


def endless(llm: LLM) -> InThread:
    """A call that runs until something ends it; it is running already."""
    before = llm.stats().num_running
    thread = InThread(lambda: llm.generate("on and on", ENDLESS, use_tqdm=False))
    until(lambda: llm.stats().num_running > before)
    return thread


def raise_in_steps_of(llm: LLM, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps with the prompt `text` raise in the worker; returns a list with the number of sequences of each."""
    worker = llm._engine.executor._worker  # type: ignore[attr-defined]
    execute, bad, failed = worker.execute, set(), []

    def run(plan: StepPlan) -> StepResult:
        bad.update(new.request.request_id for new in plan.new if new.request.prompt.text == text)
        if bad & {seq.request_id for seq in plan.scheduled}:
            failed.append(len(plan.scheduled))
            raise RuntimeError("no such kernel")
        result: StepResult = execute(plan)
        return result

    monkeypatch.setattr(worker, "execute", run)
    return failed


def test_sixteen_threads_share_a_batch_and_each_gets_its_own(llm: LLM) -> None:
    prompts = mixed_prompts(IMAGE, VIDEO)
    params = [(GREEDY, SEEDED, PAIR)[index % 3] for index in range(16)]
    work = [([prompts[index], prompts[-1 - index]], params[index]) for index in range(16)]
    before = llm.stats().num_steps
    expected = [generate(llm, *each) for each in work]
    alone = llm.stats().num_steps - before
    gate = threading.Barrier(16)

    def call(index: int) -> tuple[list[str], list[list[list[int]]]]:
        gate.wait(TIMEOUT_S)
        outputs = llm.generate(*work[index], use_tqdm=index == 3)
        return [each.request_id for each in outputs], [[c.token_ids for c in each.outputs] for each in outputs]

    threads = [InThread(lambda index=index: call(index)) for index in range(16)]  # type: ignore[misc]
    results = [thread.result() for thread in threads]
    assert [got for _, got in results] == expected
    assert len({request_id for ids, _ in results for request_id in ids}) == 32
    together = llm.stats().num_steps - before - alone
    assert together < alone / 2, "they are computed together"
    assert is_idle(llm.stats())


def test_failures_and_interrupts_end_their_own_calls_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = mixed_prompts(IMAGE, VIDEO)
    expected = [generate(llm, prompt, SEEDED) for prompt in prompts[:10]]
    failed = raise_in_steps_of(llm, "poison", monkeypatch)
    mismatch = {"prompt": turn(f"{IMAGE}{IMAGE}"), "multi_modal_data": {"image": picture(1)}}
    interrupted = [endless(llm) for _ in range(2)]
    good = [InThread(lambda prompt=prompt: generate(llm, prompt, SEEDED)) for prompt in prompts[:10]]  # type: ignore[misc]
    refused = [InThread(lambda: generate(llm, ["x", mismatch])) for _ in range(3)]
    poisoned = InThread(lambda: generate(llm, ["hello", "poison"]))
    interrupted[0].interrupt()
    assert [thread.result() for thread in good] == expected
    interrupted[1].interrupt()
    assert [type(thread.error()) for thread in refused] == [RequestError] * 3
    assert [type(thread.error()) for thread in interrupted] == [KeyboardInterrupt] * 2
    error = poisoned.error()
    assert isinstance(error, RequestError) and (error.status, error.code) == (500, "engine_fault")
    assert "no such kernel" in str(error) and isinstance(error.__cause__, RuntimeError)
    assert len(failed) == 2 and failed[1] == 1, "once beside others, once alone"
    assert is_idle(llm.stats())
    assert llm.stats().num_restarts > 0
    assert generate(llm, prompts[:10], SEEDED) == [each[0] for each in expected]


@pytest.mark.parametrize("send", [signal.raise_signal, lambda number: os.kill(os.getpid(), number)])
def test_interrupt_of_the_main_thread(llm: LLM, send: Callable[[int], None]) -> None:
    expected = generate(llm, "hello", SEEDED)
    other = InThread(lambda: [generate(llm, "hello", SEEDED) for _ in range(30)])

    def interrupt() -> None:
        until(lambda: llm.stats().num_running > 0)
        time.sleep(0.1)
        send(signal.SIGINT)

    sender = InThread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], ENDLESS, use_tqdm=False)
    sender.result()
    assert other.result() == [expected] * 30
    assert is_idle(llm.stats())


def test_preprocessing_of_one_stops_nobody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    build, entered, go_on = llm._builder.build, threading.Event(), threading.Event()

    def slow_build(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if prompt == "slow":
            entered.set()
            assert go_on.wait(TIMEOUT_S)
        return build(prompt, *args, **kwargs)

    monkeypatch.setattr(llm._builder, "build", slow_build)
    slow = InThread(lambda: generate(llm, "slow"))
    assert entered.wait(TIMEOUT_S)
    assert len(generate(llm, ["one", "two"])) == 2
    assert not slow.outcome.done()
    go_on.set()
    assert len(slow.result()) == 1


def test_inside_a_running_event_loop(llm: LLM) -> None:
    expected = generate(llm, "hello")
    messages = [{"role": "user", "content": "hello"}]

    async def run() -> None:
        assert generate(llm, "hello") == expected
        answer = llm.chat(messages, GREEDY, use_tqdm=False)
        chats = (asyncio.to_thread(llm.chat, messages, GREEDY, use_tqdm=False) for _ in range(4))
        assert [tokens(each) for each in await asyncio.gather(*chats)] == [tokens(answer)] * 4

    asyncio.run(run())


def test_an_interrupted_chat_drops_what_it_builds(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, dropped = threading.Event(), threading.Event()

    async def fetch_for_ever(*_: Any) -> list[Any]:
        entered.set()
        try:
            await asyncio.sleep(TIMEOUT_S)
        except asyncio.CancelledError:
            dropped.set()
            raise
        return []

    monkeypatch.setattr("trifocal.prompt.builder.fetch_all", fetch_for_ever)
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    InThread(lambda: (entered.wait(TIMEOUT_S), signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        llm.chat([{"role": "user", "content": [part]}], GREEDY, use_tqdm=False)
    assert dropped.wait(TIMEOUT_S)


def test_a_forked_process_is_refused(llm: LLM) -> None:
    busy = endless(llm)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = []
            for call in (lambda: llm.generate("x"), lambda: llm.chat([{"role": "user", "content": "x"}])):
                with pytest.raises(EngineDeadError) as caught:
                    call()
                said.append(str(caught.value))
            assert llm.stats().num_running >= 0
            llm.shutdown()
            os.write(writer, said[0].encode() if said[0] == said[1] else b"?")
        finally:
            os._exit(0)
    os.close(writer)
    until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    with open(reader) as pipe:
        assert f"belongs to process {os.getpid()}" in pipe.read()
    busy.interrupt()
    assert isinstance(busy.error(), KeyboardInterrupt)
    assert len(generate(llm, "here it works")) == 1


def test_a_planner_that_raises_is_survived(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(llm, ["a", "b"], SEEDED)
    schedule, raised = llm._engine.scheduler.schedule, []

    def fail_once() -> StepPlan | None:
        if not raised:
            raised.append(True)
            raise AssertionError("miscounted")
        return schedule()

    monkeypatch.setattr(llm._engine.scheduler, "schedule", fail_once)
    assert generate(llm, ["a", "b"], SEEDED) == expected
    assert raised


def test_shutdown_ends_calls_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(folder))
    entered, go_on = threading.Event(), threading.Event()
    render = llm._builder.render

    def slow_render(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        go_on.wait(TIMEOUT_S)
        return render(*args, **kwargs)

    monkeypatch.setattr(llm._builder, "render", slow_render)
    threads = [endless(llm) for _ in range(3)]
    threads.append(InThread(lambda: llm.chat([{"role": "user", "content": "x"}], use_tqdm=False)))
    assert entered.wait(TIMEOUT_S)
    InThread(llm.shutdown).result()
    go_on.set()
    for thread in threads:
        error = thread.error()
        assert isinstance(error, EngineDeadError) and "shut down" in str(error)
    with pytest.raises(EngineDeadError, match="shut down"):
        llm.generate("x")
    llm.shutdown()
    assert is_idle(llm.stats())


def test_an_engine_that_cannot_start_again_ends_every_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(str(folder)) as llm:
        raise_in_steps_of(llm, "poison", monkeypatch)
        other = endless(llm)
        monkeypatch.setattr(llm._engine, "restart", lambda: 1 / 0)
        for error in (InThread(lambda: generate(llm, "poison")).error(), other.error()):
            assert isinstance(error, EngineDeadError) and "ZeroDivisionError" in str(error)


def test_a_dropped_llm_ends_its_threads_and_gives_its_memory_back(folder: Path) -> None:
    llm: LLM | None = LLM(str(folder))
    assert llm is not None
    generate(llm, "x")
    thread, executor = llm._shared._thread, llm._engine.executor
    llm = None
    gc.collect()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert executor._worker is None  # type: ignore[attr-defined]


PROGRAM = """
import contextlib, sys, threading
from trifocal import LLM, SamplingParams
from trifocal.errors import EngineDeadError

llm = LLM(sys.argv[1])
short, long = SamplingParams(temperature=0, max_tokens=4), SamplingParams(max_tokens=3500, ignore_eos=True)

def late():
    threading.main_thread().join()
    print(len(llm.generate(["a", "b"], short, use_tqdm=False)), flush=True)
    print(len(llm.chat([{"role": "user", "content": "x"}], short, use_tqdm=False)), flush=True)

def endless():
    with contextlib.suppress(EngineDeadError):
        while True:
            llm.generate("c", long, use_tqdm=False)

threading.Thread(target=late).start()
threading.Thread(target=endless, daemon=True).start()
"""


def test_threads_that_outlive_the_main_thread_work_and_the_process_ends(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "1"]), done.stderr
    assert "Fatal" not in done.stderr and "Traceback" not in done.stderr


def test_a_pool_of_threads_with_lists_of_prompts(llm: LLM) -> None:
    """More sequences than one step takes, each in its place."""
    expected = generate(llm, [f"number {index}" for index in range(40)])
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda k: generate(llm, [f"number {index}" for index in range(k, 40, 8)]), range(8))
    for k, part in enumerate(parts):
        assert part == expected[k::8]


@pytest.mark.slow
def test_interrupts_and_failing_steps_at_any_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of all of it: a thousand interrupts, steps that raise, preemption; not one wrong token."""
    prompts, params = mixed_prompts(IMAGE, VIDEO), (GREEDY, SEEDED, PAIR)
    messages, chance, counts = [{"role": "user", "content": "hello"}], random.Random(0), {"right": 0, "interrupted": 0}
    end = time.monotonic() + 30

    def work(llm: LLM, seed: int) -> None:
        mine = random.Random(seed)
        while time.monotonic() < end:
            with contextlib.suppress(RequestError):  # chance made its steps fail twice
                if mine.random() < 0.2:
                    assert tokens(llm.chat(messages, GREEDY, use_tqdm=False)) == chat
                chosen = [(mine.randrange(16), mine.randrange(3)) for _ in range(mine.randint(1, 5))]
                got = generate(llm, [prompts[i] for i, _ in chosen], [params[j] for _, j in chosen])
                assert got == [expected[each] for each in chosen]
                counts["right"] += 1

    def work_on(llm: LLM, seed: int) -> None:
        while time.monotonic() < end:
            try:
                work(llm, seed)
            except KeyboardInterrupt:
                counts["interrupted"] += 1

    with LLM(str(folder), num_gpu_blocks_override=300, max_num_seqs=12) as llm:
        expected = {(i, j): generate(llm, prompts[i], params[j])[0] for i in range(16) for j in range(3)}
        chat = tokens(llm.chat(messages, GREEDY, use_tqdm=False))
        worker = llm._engine.executor._worker  # type: ignore[attr-defined]
        execute = worker.execute
        monkeypatch.setattr(worker, "execute", lambda plan: execute(plan) if chance.random() > 0.002 else 1 / 0)
        threads = [InThread(lambda seed=seed: work_on(llm, seed)) for seed in range(16)]  # type: ignore[misc]
        while time.monotonic() < end - 2:
            time.sleep(0.05 * chance.random())
            chance.choice(threads).interrupt()
        errors = [thread.error() for thread in threads]
        assert [error for error in errors if not isinstance(error, KeyboardInterrupt | None)] == []
        assert counts["right"] > 100 and counts["interrupted"] > 100
        assert is_idle(llm.stats()) and len(llm._shared._flights) == 0
