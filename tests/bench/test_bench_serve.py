"""`trifocal bench` against a real server, and what it says when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trifocal.cli import main

SMALL = ["--num-prompts", "3", "--concurrency", "2", "--input-len", "5", "--output-len", "6"]


def test_streaming_counts_every_token(demo_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    words = ["--base-url", demo_server, *SMALL, "--num-images", "1", "--image-size", "56", "--json", str(file)]
    assert main(["bench", "serve", *words]) == 0
    result = json.loads(file.read_text())["results"]["custom"]
    assert result["num_failed"] == 0 and result["num_output_tokens"] == 18
    assert result["ttft_ms"]["mean"] <= result["e2e_ms"]["mean"]
    assert "custom: 3 requests, 0 failed" in capsys.readouterr().out


def test_without_streaming(demo_server: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert main(["bench", "serve", "--base-url", demo_server, *SMALL, "--no-stream", "--json", str(file)]) == 0
    result = json.loads(file.read_text())["results"]["custom"]
    assert result["num_output_tokens"] == 18 and "ttft_ms" not in result


def test_failed_requests_are_counted(demo_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", demo_server, "--model", "nobody", *SMALL]) == 1
    output = capsys.readouterr().out
    assert "3 requests, 3 failed" in output and "404" in output


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", *SMALL]) == 2
    assert "no server at http://127.0.0.1:9" in capsys.readouterr().err


def test_throughput(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["--num-prompts", "3", "--input-len", "5", "--output-len", "4", "--json", str(file), "--max-num-seqs", "2"]
    assert main(["bench", "throughput", *words]) == 0
    result = json.loads(file.read_text())
    assert result["num_output_tokens"] == 12 and result["requests_per_s"] > 0


def test_throughput_refuses_senseless_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", "--num-prompts", "0"]) == 2
    assert "--num-prompts" in capsys.readouterr().err
