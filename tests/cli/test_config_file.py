"""`--config FILE.yaml`: the same as its flags, and the command line wins."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from trifocal.cli import main
from trifocal.cli import serve as serve_command
from trifocal.cli.flags import Parser, build
from trifocal.cli.ignored import notes
from trifocal.config.engine import EngineArgs
from trifocal.config.server import ServerArgs

FILE = """
# as vLLM's documentation has it
model: from-file
served-model-name:
  - a
  - 2
max_model_len: 8k
port: 12323
uvicorn-log-level: "warning"
trust-remote-code: true
enable-prefix-caching: false
quantization: null
limit-mm-per-prompt:
  image: 4
compilation-config: {cudagraph_capture_sizes: [1, 2]}
disable-log-stats: true
"""


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="trifocal serve")
    serve_command.configure_parser(parser)
    return parser.parse_args(list(words))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(FILE)
    return path


def test_a_file_means_what_its_flags_mean(path: Path) -> None:
    namespace = parse("--config", str(path))
    assert serve_command.engine_args(namespace) == EngineArgs(
        model="from-file", max_model_len=8000, trust_remote_code=True, enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 4}, compilation_config={"cudagraph_capture_sizes": [1, 2]},
    )  # fmt: skip
    assert build(ServerArgs, namespace) == ServerArgs(
        served_model_name=["a", "2"], port=12323, uvicorn_log_level="warning"
    )
    assert notes(namespace) == ["--disable-log-stats has no effect: statistics are at /metrics and in LLM.stats()"]


def test_the_command_line_wins(path: Path) -> None:
    words = ["--port", "1", "--served-model-name", "b", "--no-trust-remote-code", "--limit-mm-per-prompt.video=1"]
    namespace = parse(f"--config={path}", *words)
    args = serve_command.engine_args(namespace)
    assert (args.model, args.trust_remote_code, args.limit_mm_per_prompt) == ("from-file", False, {"video": 1})
    server = build(ServerArgs, namespace)
    assert (server.port, server.served_model_name) == (1, ["b"])
    for given in (["mine"], ["--model", "mine"]):
        assert serve_command.engine_args(parse("--config", str(path), *given)).model == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modellen: 3", ": unknown flag --max-modellen; did you mean --max-model-len?"),
        ("port: http", ": argument --port: expected an integer, got 'http'"),
        ("trust-remote-code: maybe", ": argument --trust-remote-code: expected true or false, got 'maybe'"),
        ("port: 1\nport: 2", " cannot be read: 'port' is given twice"),
        ("- port", ": expected one flag and its value in each line"),
        ("port", ": expected one flag and its value in each line"),
        ("a: [", " cannot be read: "),
        ("config: other.yaml", ": a file of flags cannot name another one"),
        ("x: !!python/object/apply:os.getcwd []", " cannot be read: could not determine a constructor"),
        ("enable-lora: true\nmodel: x", "not available yet: --enable-lora"),
    ],
)
def test_mistakes_are_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    try:
        status = main(["serve", "--config", str(path)])
    except SystemExit as error:
        status = int(error.code or 0)
    told = capsys.readouterr().err
    assert status == 2 and told.count("\n") == 1 and message in told
    assert "lora" in text or f"--config {path}" in told


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert serve_command.engine_args(parse("x", "--config", str(tmp_path / "empty.yaml"))) == EngineArgs(model="x")
