"""What strangers can reach: keys on every route, TLS, CORS, one port and private sockets."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.api.helpers import HELLO, MODEL, Server, image_part, launch, picture, running
from trifocal.api.app import _build, create_app
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.http.auth import OPEN_PATHS
from trifocal.media.fetch.policy import FetchPolicy

CHAT = "/v1/chat/completions"
PAGE = "https://page.example"
BODY = {"model": MODEL, "messages": HELLO, "max_tokens": 1}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate for 127.0.0.1 and a client's, each its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with everything on: two keys, TLS with client certificates, pages of one origin."""
    server = launch(
        checkpoint, tmp_path_factory.mktemp("guarded") / "server.log", "--api-key", "key-one", "key-two",
        "--ssl-keyfile", str(certificates / "server.key"), "--ssl-certfile", str(certificates / "server.crt"),
        "--ssl-ca-certs", str(certificates / "client.crt"), "--ssl-cert-reqs", "2",
        "--allowed-origins", f'["{PAGE}"]', "--allow-credentials",
    )  # fmt: skip
    try:
        server.wait_ready(scheme="https", verify=trusting(certificates))
        yield server
    finally:
        status = server.stop()
    assert status == 0, server.log.read_text()


def trusting(certificates: Path, brings_own: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    if brings_own:
        context.load_cert_chain(certificates / "client.crt", certificates / "client.key")
    return context


@pytest.fixture
def https(guarded: Server, certificates: Path) -> Iterator[httpx.Client]:
    url = guarded.url.replace("http:", "https:")
    with httpx.Client(base_url=url, verify=trusting(certificates), timeout=60) as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


# ---------------------------------------------------------------------------------------------- keys


def routes(checkpoint: Path) -> list[tuple[str, str]]:
    """Method and path of every route that the application has."""
    app = create_app(cast(Any, None), cast(Any, None), resolve(EngineArgs(model=str(checkpoint))), ServerArgs())
    found, left = [], list(app.routes)
    while left:
        route = left.pop()
        if included := getattr(route, "original_router", None):  # FastAPI keeps included routers as they are
            left += included.routes
            continue
        assert isinstance(route, APIRoute), f"{route} is no route of ours: who guards it?"
        path = re.sub(r"\{.*?\}", "x", route.path)
        found += [(method, path) for method in sorted(route.methods)]
    return found


def test_every_route_but_the_health_ones_wants_a_key(https: httpx.Client, checkpoint: Path) -> None:
    table = routes(checkpoint)
    assert len(table) >= 12 and {path for _, path in table} > OPEN_PATHS
    for method, path in [*table, ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/health/x")]:
        for headers in (
            {},
            key("key-three"),
            {"Authorization": "Bearer"},
            key("key-one key-two"),
            {"Authorization": "key-one"},
        ):
            response = https.request(method, path, headers=headers)
            if path in OPEN_PATHS:
                assert response.status_code == 200 and response.content == b"", (method, path)
            else:
                assert response.status_code == 401, (method, path, headers)
                assert response.headers["www-authenticate"] == "Bearer" and response.headers["x-request-id"]


@pytest.mark.parametrize("name", ["key-one", "key-two"])
def test_each_key_opens(https: httpx.Client, name: str) -> None:
    assert https.post(CHAT, json=BODY, headers=key(name)).status_code == 200
    assert https.get("/v1/models", headers={"Authorization": f"bearer {name}"}).status_code == 200


@pytest.mark.parametrize("variable", ["VLLM_API_KEY", pytest.param("TRIFOCAL_API_KEY", marks=pytest.mark.slow)])
def test_a_key_from_the_environment(checkpoint: Path, tmp_path: Path, variable: str) -> None:
    with running(checkpoint, tmp_path / "log", env={variable: "from-outside"}) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers=key("from-outside")).status_code == 200


def test_an_empty_key_is_no_open_door(checkpoint: Path, tmp_path: Path) -> None:
    server = launch(checkpoint, tmp_path / "log", "--api-key", "")
    assert server.process.wait(60) == 2
    assert "--api-key is empty" in server.log.read_text()


# ---------------------------------------------------------------------------------------------- TLS


def test_a_client_without_certificate_is_turned_away(guarded: Server, certificates: Path) -> None:
    with (
        httpx.Client(verify=trusting(certificates, brings_own=False)) as stranger,
        pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)),
    ):
        stranger.get(f"https://127.0.0.1:{guarded.port}/health")
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        httpx.get(f"http://127.0.0.1:{guarded.port}/health")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--ssl-certfile", "{tls}/server.crt", "--ssl-keyfile", "{tls}/client.key"], "--ssl-certfile"),
        (["--ssl-certfile", "{tls}/server.crt", "--ssl-keyfile", "{tls}/server.key", "--ssl-ca-certs", "{tls}/none"],
         "--ssl-ca-certs"),
        (["--ssl-certfile", "{tls}/server.crt", "--ssl-keyfile", "{tls}/server.key", "--ssl-ciphers", "nonsense"],
         "--ssl-ciphers nonsense"),
        (["--otlp-traces-endpoint", "grpc://127.0.0.1:4317"], "--otlp-traces-endpoint"),
        (["--allow-pickle"], "--allow-pickle (only safetensors"),
    ],
    ids=str,
)  # fmt: skip
def test_flags_that_cannot_work(
    checkpoint: Path, certificates: Path, tmp_path: Path, flags: list[str], complaint: str
) -> None:
    server = launch(checkpoint, tmp_path / "log", *(flag.format(tls=certificates) for flag in flags))
    assert server.process.wait(120) == 2, server.log.read_text()
    assert complaint in server.log.read_text() and "Traceback" not in server.log.read_text()


# ---------------------------------------------------------------------------------------------- pages


def test_a_page_of_the_allowed_origin_may_call(https: httpx.Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = https.options(CHAT, headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-credentials"] == "true"
    answer = https.post(CHAT, json=BODY, headers={"Origin": PAGE, **key("key-one")})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-ignored-fields", "retry-after"} <= set(exposed)
    refused = https.post(CHAT, json=BODY, headers={"Origin": PAGE})  # and may read why it was refused
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE


def test_a_page_of_another_origin_may_not(https: httpx.Client) -> None:
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert https.options(CHAT, headers=asks).status_code == 400
    answer = https.post(CHAT, json=BODY, headers={"Origin": "https://evil.example", **key("key-one")})
    assert "access-control-allow-origin" not in answer.headers


def test_no_page_may_where_none_was_allowed(http: httpx.Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = http.options(CHAT, headers=asks)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_methods_and_headers_of_pages_are_those_allowed(checkpoint: Path) -> None:
    args = ServerArgs(allowed_origins=[PAGE], allowed_methods=["POST"], allowed_headers=["x-one"])
    app = create_app(cast(Any, None), cast(Any, None), resolve(EngineArgs(model=str(checkpoint))), args)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for method, header, status in (("POST", "x-one", 200), ("DELETE", "x-one", 400), ("POST", "x-two", 400)):
            asks = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}
            assert (await client.options(CHAT, headers={"Origin": PAGE, **asks})).status_code == status, (
                method,
                header,
            )


# ---------------------------------------------------------------------------------------------- fetching


def test_flags_reach_the_fetch_policy(checkpoint: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "allowed_local_media_path": str(tmp_path), "allowed_media_domains": ["media.example"],
        "allowed_media_networks": ["10.0.0.0/8"], "media_proxy": "http://proxy.example:3128",
    }  # fmt: skip
    config = resolve(EngineArgs(model=str(checkpoint)))
    for args, expected in ((flags, FetchPolicy.from_flags(**flags)), ({}, FetchPolicy())):
        builder, _ = _build(config, ServerArgs(**args))
        assert builder._fetch_policy == expected
        builder.close()


# ---------------------------------------------------------------------------------------------- sockets

_LISTEN = "0A"


def processes(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def socket_inodes(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def test_nothing_listens_but_the_port(server: Server, http: httpx.Client) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": [image_part(picture())]}]}
    assert http.post(CHAT, json=body).status_code == 200  # whatever is started on demand has been
    pids = processes(server.process.pid)
    assert len(pids) >= 2
    mine = socket_inodes(pids)
    listening, datagrams = [], []
    for pid in pids:  # each may have a network namespace of its own
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            listening += [row[1] for row in rows if row[3] == _LISTEN and row[9] in mine]
        for table in ("udp", "udp6", "raw", "raw6"):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            datagrams += [row[1] for row in rows if row[9] in mine]
    assert set(listening) == {f"0100007F:{server.port:04X}"}  # 127.0.0.1, as the hexadecimal of the table
    assert datagrams == []


def test_processes_talk_in_private(server: Server) -> None:
    """No socket between our processes has a name that somebody else could connect to."""
    mine = socket_inodes(processes(server.process.pid))
    rows = [
        line.split(maxsplit=7) for line in Path(f"/proc/{server.process.pid}/net/unix").read_text().splitlines()[1:]
    ]
    ours = [columns for columns in rows if columns[6] in mine]
    assert ours  # the pair that joins server and engine
    assert [columns[7] for columns in ours if len(columns) == 8] == []
