"""Every message survives the way between the processes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests import tiny
from tests.engine.fake_worker import make_limits
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine import messages
from trifocal.sampling_params import SamplingParams
from trifocal.types import EngineStats, MediaItem, Prompt, Request, SharedPixels, Span, TokenLogprobs, TokenOutput

EVERY_PARAM = SamplingParams(
    n=2, presence_penalty=-1, frequency_penalty=0.5, repetition_penalty=1.2, temperature=0, top_p=0.9, top_k=0,
    min_p=0.1, seed=-(1 << 63), stop=["a", "é👍"], stop_token_ids=[4, 2], ignore_eos=True, max_tokens=9, min_tokens=3,
    logprobs=0, logit_bias={7: -100, 8: 0.25}, skip_special_tokens=False, include_stop_str_in_output=True,
)  # fmt: skip
PIXELS = SharedPixels("/dev/shm/x/ab", (4, 6), "uint8")


def send(request: Request) -> Request:
    message = messages.decode_to_engine(messages.encode(messages.AddRequest(request)))
    assert isinstance(message, messages.AddRequest)
    return message.request


def test_a_request_with_media_and_positions() -> None:
    media = (
        MediaItem("image", bytes(range(16)), Span(1, 3, (True, False, True)), (1, 2, 3), PIXELS),
        MediaItem("video", b"\xff" * 16, Span(4, 2), (), PIXELS),
    )
    positions = np.arange(21).reshape(3, 7)[:, ::-1] * 20_000
    prompt = Prompt(
        [1, 2, 3, 4, 5, 6, 7], media, positions, -4, text="shown", cache_salt="sälz", cache_key_extra=b"\0a"
    )
    before = Request(
        "x/1", prompt, EVERY_PARAM, frozenset({9, 4}), seed=(1 << 63) + 5, output_token_ids=(8, 8, 3),
        prompt_logprobs=-1, bad_word_ids=((7,), (8, 9)),
    )  # fmt: skip
    after = send(before)
    for name in {field.name for field in fields(Request)} - {"prompt"}:
        assert getattr(after, name) == getattr(before, name)
    assert after.prompt.token_ids == prompt.token_ids
    assert after.prompt.positions is not None
    assert after.prompt.positions.dtype == np.int64
    np.testing.assert_array_equal(after.prompt.positions, positions)
    assert (after.prompt.position_delta, after.prompt.cache_salt) == (-4, "sälz")
    for old, new in zip(media, after.prompt.media, strict=True):
        assert all(getattr(old, field.name) == getattr(new, field.name) for field in fields(MediaItem))


def test_a_request_of_text_alone() -> None:
    after = send(Request("a", Prompt([3]), SamplingParams()))
    assert (after.params, after.seed, after.stop_token_ids) == (SamplingParams(), 0, frozenset())
    assert (after.prompt.positions, after.prompt.media, after.prompt.cache_salt) == (None, (), None)


def test_pixels_outside_the_media_store_are_not_sent() -> None:
    item = MediaItem("image", b"r" * 16, Span(0, 1), (1,), np.zeros((1, 1), dtype=np.uint8))
    with pytest.raises(TypeError, match="media store"):
        messages.encode(messages.AddRequest(Request("a", Prompt([1], (item,)), SamplingParams())))


def test_positions_take_no_more_than_they_need() -> None:
    for most, num_bytes in {255: 1, 65_535: 2, 1 << 20: 4, 1 << 33: 8}.items():
        positions = np.array([[0] * 99 + [most]] * 3, dtype=np.int64)
        request = Request("a", Prompt([1], positions=positions), SamplingParams())
        without = messages.encode(messages.AddRequest(Request("a", Prompt([1]), SamplingParams())))
        assert len(messages.encode(messages.AddRequest(request))) - len(without) < 300 * num_bytes + 20
        np.testing.assert_array_equal(send(request).prompt.positions, positions)


@pytest.mark.parametrize("message", [messages.AbortRequests(["a", "b/0"]), messages.QueryStats(), messages.Stop()])
def test_messages_to_the_engine(message: messages.ToEngine) -> None:
    assert messages.decode_to_engine(messages.encode(message)) == message


_TOKENS = TokenOutput("a", [3], [TokenLogprobs([3, 4], [-0.5, float("-1e30")], 1)], "stop", 3, num_cached_tokens=16)
_PROMPT = TokenOutput("a", [], finish_reason="length", prompt_logprobs=[None, TokenLogprobs([3], [-0.5], 7), None])


@pytest.mark.parametrize(
    "message",
    [
        messages.Ready(make_limits(enable_chunked_prefill=False)),
        messages.Failed("no memory", is_config=True),
        messages.Outputs([_TOKENS, _PROMPT, TokenOutput("b", [], None, "error", "broken")], EngineStats(num_running=3)),
        messages.Report(EngineStats(kv_blocks_used=1, encoder_hits=1 << 40)),
    ],
)
def test_messages_from_the_engine(message: messages.FromEngine) -> None:
    assert messages.decode_from_engine(messages.encode(message)) == message


def test_the_configuration(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model", rope_scaling=tiny.YARN)
    args = EngineArgs(
        model=str(folder), device="cpu", limit_mm_per_prompt={"image": 2}, mm_processor_kwargs={"max_pixels": 9},
        compilation_config={"cudagraph_capture_sizes": [1, 2]}, num_gpu_blocks_override=5,
    )  # fmt: skip
    config = resolve(args)
    assert messages.decode_config(messages.encode(config)) == config


def test_what_is_no_message_is_refused() -> None:
    for data in (messages.encode({"type": "Restart"}), messages.encode([1]), messages.encode(messages.Stop())):
        with pytest.raises(msgspec.ValidationError):
            messages.decode_from_engine(data)
