# ruff: noqa: E501  (lists of inputs read better with one idea a line)
"""Hostile URLs: into the machine and its network, out of the allowed folder, to servers that cheat; odd data: URLs."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from functools import partial

from tools.hostile.case import Call, Case, ask_about
from tools.hostile.pictures import sample

# {canary}: a listener that must never be reached. {web}: the hostile server, which may be.
INSIDE = """http://127.0.0.1:{canary}/ http://localhost:{canary}/ http://LOCALHOST.:{canary}/ http://127.1:{canary}/
    http://2130706433:{canary}/ http://0x7f000001:{canary}/ http://0x7f.0x0.0x0.0x1:{canary}/ http://0177.0.0.1:{canary}/
    http://017700000001:{canary}/ http://[::1]:{canary}/ http://[::ffff:127.0.0.1]:{canary}/ http://[::127.0.0.1]:{canary}/
    http://[::ffff:7f00:1]:{canary}/ http://[64:ff9b::127.0.0.1]:{canary}/ http://[2002:7f00:1::]:{canary}/
    http://[0:0:0:0:0:ffff:127.0.0.1]:{canary}/ http://0:{canary}/ http://0.0.0.0:{canary}/ http://[::]:{canary}/
    http://127.0.0.1.:{canary}/ http://①②⑦.⓪.⓪.①:{canary}/ http://127。0。0。1:{canary}/ http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{canary}/
    http://user:pass@127.0.0.1:{canary}/ http://example.org@127.0.0.1:{canary}/ http://127.0.0.1:{canary}\\@example.org/
    http://example.org\\@127.0.0.1:{canary}/ http://127.0.0.1:{canary}#@example.org/ http://127.0.0.1:{canary}?@example.org/
    http:127.0.0.1:{canary}/ http:///127.0.0.1:{canary}/ http:/\\127.0.0.1:{canary}/ https://127.0.0.1:{canary}/
    HTTP://127.0.0.1:{canary}/ http://127.0.0.1:{canary}/%0d%0aHost:%20x http://%31%32%37.0.0.1:{canary}/
    http://169.254.169.254/latest/meta-data/ http://[fe80::1%25eth0]/ http://[fd00:ec2::254]/ http://100.100.100.200/
    http://metadata.google.internal/ http://10.0.0.1/ http://192.168.0.1/ http://172.16.0.1/ http://224.0.0.1/
    http://255.255.255.255/ http://[ff02::1]/ http://{long}/ http://a..b/ http://-/ http://[::1/ http://]/ http://:80/
    http://127.0.0.1:99999/ http://127.0.0.1:-1/ http://127.0.0.1:x/ http://*/ http://127.0.0.1:0/""".split()
SCHEMES = """ftp://127.0.0.1/x gopher://127.0.0.1:{canary}/_GET dict://127.0.0.1:{canary}/ ldap://127.0.0.1/ tftp://127.0.0.1/x
    jar:http://127.0.0.1!/ javascript:alert(1) about:blank blob:http://x/y chrome://settings ws://127.0.0.1:{canary}/
    rtsp://127.0.0.1:{canary}/ concat:/etc/passwd subfile:,,start,0,end,9,,:/etc/passwd pipe:0 fd:0 /etc/passwd ../x
    //127.0.0.1:{canary}/ \\\\127.0.0.1\\x C:\\x unix:///x {nul}http://x/ http+unix://x/""".split()
FILES = """file:///etc/passwd file:///etc/../etc/passwd file://localhost/etc/passwd file://127.0.0.1/etc/passwd file:/etc/passwd
    file:etc/passwd file:///{media}/../../etc/passwd file:///{media}/%2e%2e/%2e%2e/etc/passwd file:///{media}/..%2f..%2fetc/passwd
    file:///{media}/%00 file:///{media}/link file:///{media}/ file:///{media}/nothing file:///{media}/pipe file:///dev/zero
    file:///dev/stdin file:///proc/self/environ file:///proc/self/mem file:///{media}/{long} file:///{media}/%ff%fe
    file:///{media}/good.png?x#y file:///{media}/loop file:///%2fetc%2fpasswd FILE:///etc/passwd file:////etc/passwd""".split()
# Pages of the hostile server (`attack.py`).
PAGES = """redirect-inside redirect-file redirect-loop redirect-data redirect-mapped slow-body slow-headers endless chunked gzip
    gzip-bomb gzip-twice gzip-empty gzip-cut gzip-lie deflate br odd-encoding short-length long-length huge-length negative-length two-lengths no-status garbage huge-header many-headers 204
    206 304 404 500 401 100 reset html empty cookie upgrade good""".split()


def cases() -> Iterator[Case]:
    """All of them."""
    for family, urls in {"inside": INSIDE, "scheme": SCHEMES, "file": FILES}.items():
        for number, url in enumerate(urls):
            yield Case(f"url/{family}/{number}", partial(_url, url))
    for page in PAGES:
        yield Case(f"url/web/{page}", partial(_url, f"http://127.0.0.2:{{web}}/{page}"))
    for number, url in enumerate(data_urls()):
        yield Case(f"data/{number}", partial(_data_url, url))


def _url(url: str, chance: random.Random) -> Call:
    return ask_about(url, chance.choice(["image_url", "image_url", "video_url"]))


def _data_url(url: str, chance: random.Random) -> Call:
    return ask_about(url)


def data_urls() -> Iterator[str]:
    """Heads and payloads, right and wrong."""
    good = base64.b64encode(sample("PNG")).decode()
    for head in ("data:image/png;base64", "data:;base64", "DATA:IMAGE/PNG;BASE64", "data:text/html;base64", "data:a;b;c;d;base64",
                 "data:image/png", "data:", "data:image/svg+xml;utf8", "data:;base64;base64", "data:" + "x" * 100_000 + ";base64",
                 "data:\x00;base64", "data:image/png;charset=\ud800;base64", "data:;BASE64 ", "data:image/png;base64;"):  # fmt: skip
        yield f"{head},{good}"
    for payload in (good[:-1], good[:-3], good + "=", good + "====", "=" * 1000, "A" * 1_000_001, "!" * 1000, "%", "%4", "%zz" * 1000,
                    "%41" * 300_000, good.replace("+", "-").replace("/", "_"), good + "\ud800", good + "\x00", good + "ä",
                    " ".join(good), "\n".join(good), ",".join(good), good * 3, "", "data:image/png;base64," + good):  # fmt: skip
        yield f"data:image/png;base64,{payload}"
    yield "data:image/png;base64"
    yield "data:image/png;base64;" + good
