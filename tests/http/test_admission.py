"""Admission counts: queue, tokens and bytes go up, are refused at their limit, and come back to nothing."""

from __future__ import annotations

from typing import Any

import pytest

from trifocal.config.server import ServerArgs
from trifocal.errors import ConfigError
from trifocal.http.admission import Admission
from trifocal.http.errors import OverloadedError


def admission(**limits: Any) -> Admission:
    return Admission(ServerArgs(**limits))


def test_places_are_counted_and_given_back() -> None:
    rooms = admission(max_queued_requests=2)
    with rooms.place(), rooms.place():
        assert rooms.num_queued == 2
        with pytest.raises(OverloadedError, match="2 requests are waiting .--max-queued-requests."), rooms.place():
            raise AssertionError("there was no place")
        with pytest.raises(OverloadedError):  # already before the body is read
            rooms.open()
    assert rooms.num_queued == 0
    with pytest.raises(ZeroDivisionError), rooms.place():
        _ = 1 / 0
    assert rooms.num_queued == 0
    rooms.open().close()


def test_tokens_are_counted_and_given_back() -> None:
    rooms = admission(max_queued_tokens=100)
    with rooms.place() as first:
        first.add_tokens(60)
        with rooms.place() as second:
            with pytest.raises(OverloadedError, match="60 tokens are waiting, and 41 more would be above 100"):
                second.add_tokens(41)
            second.add_tokens(40)
            with pytest.raises(OverloadedError, match="100 tokens are waiting .--max-queued-tokens."), rooms.place():
                raise AssertionError("there was no place")
        assert rooms.num_queued_tokens == 60
    assert rooms.num_queued_tokens == 0


def test_one_request_always_fits_the_tokens() -> None:
    rooms = admission(max_queued_tokens=100)
    with rooms.place() as place:
        place.add_tokens(500)
        with pytest.raises(OverloadedError):
            rooms.open()
    rooms.open().close()


def test_bytes_are_counted_and_given_back() -> None:
    rooms = admission(max_request_bytes=50, max_media_bytes_in_flight=100)
    first, second = rooms.open(), rooms.open()
    first.take(70)
    second.take(30)
    with pytest.raises(OverloadedError, match="requests hold 100 bytes of .*, and 1 more would be above 100"):
        second.take(1)
    first.keep(10)
    second.keep(90)
    assert rooms.num_bytes == 100
    with pytest.raises(OverloadedError):
        first.keep(11)
    first.close()
    first.close()
    second.close()
    assert rooms.num_bytes == 0


async def test_draining_refuses_and_waits_for_the_last() -> None:
    rooms = admission()
    visitor = rooms.open()
    assert not rooms.emptied.is_set()
    rooms.drain()
    with pytest.raises(OverloadedError) as caught:
        rooms.open()
    assert (caught.value.status, caught.value.code) == (503, "shutting_down")
    visitor.close()
    assert rooms.emptied.is_set()


def test_retry_after_is_a_whole_number_of_seconds() -> None:
    rooms = admission()
    for _ in range(50):
        with rooms.place():
            pass
    assert rooms.retry_after_s == 1
    assert isinstance(rooms.retry_after_s, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_queued_requests": 0}, "--max-queued-requests must be at least 1, got 0"),
        ({"max_n": -1}, "--max-n must be at least 1"),
        ({"queue_timeout": -1.0}, "--queue-timeout must be at least 0"),
        ({"body_timeout": float("nan")}, "--body-timeout must be at least 0, got nan"),
        ({"max_media_bytes_in_flight": 1000}, "must be at least --max-request-bytes"),
        ({"api_key": [""]}, "--api-key is empty"),
        ({"api_key": ["a", ""]}, "--api-key is empty"),
        ({"ssl_keyfile": "k"}, "--ssl-keyfile needs --ssl-certfile"),
        ({"ssl_cert_reqs": 2}, "--ssl-cert-reqs needs --ssl-certfile"),
        ({"ssl_certfile": "c", "ssl_cert_reqs": 2}, "--ssl-cert-reqs 2 needs --ssl-ca-certs"),
        ({"ssl_certfile": "c", "ssl_ca_certs": "a", "ssl_cert_reqs": 3}, "--ssl-cert-reqs must be 0, 1 or 2"),
        ({"allow_credentials": True}, "--allow-credentials needs --allowed-origins"),
        ({"allow_credentials": True, "allowed_origins": ["*"]}, "--allow-credentials needs --allowed-origins"),
    ],
)
def test_arguments_that_cannot_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerArgs(**values)
