"""The command line: vLLM's spellings in, `EngineArgs` and `ServerArgs` out, one clear line for every mistake."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import pytest

from trifocal import __version__
from trifocal.cli import COMMANDS, main
from trifocal.cli import serve as serve_command
from trifocal.cli.flags import Parser, build, to_words
from trifocal.cli.ignored import notes
from trifocal.config.engine import EngineArgs
from trifocal.config.server import ServerArgs
from trifocal.config.vllm_options import OPTIONS, PYTHON_OPTIONS
from trifocal.errors import NotAvailableYetError


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="trifocal serve")
    serve_command.configure_parser(parser)
    return parser.parse_args(list(words))


def engine(*words: str) -> EngineArgs:
    return serve_command.engine_args(parse("model", *words))


def test_the_command_of_the_seed() -> None:
    namespace = parse(
        "--model", "model", "--max-num-seqs=256", "--max-model-len=4096", "--max-num-batched-tokens=4096",
        "--tensor-parallel-size=1", "--block-size=128", "--dtype", "bfloat16", "--host=0.0.0.0", "--port=8080",
        "--gpu-memory-utilization=0.9", "--quantization=awq", "--trust-remote-code",
        "--compilation_config", '{"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}', "--enforce-eager",
    )  # fmt: skip
    assert serve_command.engine_args(namespace) == EngineArgs(
        model="model", max_num_seqs=256, max_model_len=4096, max_num_batched_tokens=4096, tensor_parallel_size=1,
        block_size=128, dtype="bfloat16", gpu_memory_utilization=0.9, quantization="awq", trust_remote_code=True,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}, enforce_eager=True,
    )  # fmt: skip
    assert build(ServerArgs, namespace) == ServerArgs(host="0.0.0.0", port=8080)


def test_nothing_given_is_every_default() -> None:
    assert engine() == EngineArgs(model="model")
    assert build(ServerArgs, parse("model")) == ServerArgs()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--max_num_seqs", "3"], "max_num_seqs", 3),
        (["--max_num_seqs=3"], "max_num_seqs", 3),
        (["--max-model-len", "32k"], "max_model_len", 32_000),
        (["--max-model-len", "32K"], "max_model_len", 32_768),
        (["--enforce-eager"], "enforce_eager", True),
        (["--enforce_eager=true"], "enforce_eager", True),
        (["--enforce-eager", "True"], "enforce_eager", True),
        (["--enforce-eager=0"], "enforce_eager", False),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--no_enable_prefix_caching"], "enable_prefix_caching", False),
        (["--enable-prefix-caching=false"], "enable_prefix_caching", False),
        (["--no-enable-prefix-caching=false"], "enable_prefix_caching", True),
        (["-tp", "2"], "tensor_parallel_size", 2),
        (["--limit-mm-per-prompt", '{"image": 4}'], "limit_mm_per_prompt", {"image": 4}),
        (["--limit_mm_per_prompt", "image=4,video=1"], "limit_mm_per_prompt", {"image": 4, "video": 1}),
        (["--limit-mm-per-prompt=image=4"], "limit_mm_per_prompt", {"image": 4}),
        (["--override-generation-config", '{"stop": "a=b"}'], "override_generation_config", {"stop": "a=b"}),
        (["--distributed-executor-backend=ray"], "distributed_executor_backend", "ray"),
        (["--distributed-executor-backend", "None"], "distributed_executor_backend", None),
        (["--quantization=None"], "quantization", None),
        (["--max-num-batched-tokens", "None"], "max_num_batched_tokens", None),
        (["--max-model-len", "auto"], "max_model_len", None),
        (["--max-model-len=-1"], "max_model_len", None),
        (["--max-model-len", "1T"], "max_model_len", 1 << 40),
        (
            ["--limit-mm-per-prompt.image", "2", "--limit-mm-per-prompt.video=0"],
            "limit_mm_per_prompt",
            {"image": 2, "video": 0},
        ),
        (
            ["--limit_mm_per_prompt.image=2", "--limit-mm-per-prompt", "image=4,video=1"],
            "limit_mm_per_prompt",
            {"image": 2, "video": 1},
        ),
        (["--mm-processor-kwargs.size.longest_edge", "32k"], "mm_processor_kwargs", {"size": {"longest_edge": 32_000}}),
        (
            ["--mm-processor-kwargs.a", "-1", "--mm-processor-kwargs.b=x.y"],
            "mm_processor_kwargs",
            {"a": -1, "b": "x.y"},
        ),
        (["-cc.cudagraph_mode", "NONE"], "compilation_config", {"cudagraph_mode": "NONE"}),
        (
            ["--compilation_config.cudagraph_capture_sizes+", "1,2", "-cc.cudagraph_capture_sizes+=4"],
            "compilation_config",
            {"cudagraph_capture_sizes": [1, 2, 4]},
        ),
        (["--compilation-config", "3"], "compilation_config", {"mode": 3}),
        (["--cudagraph-capture-sizes", "1", "2k"], "cudagraph_capture_sizes", [1, 2000]),
        (["--cudagraph_capture_sizes=[1, 2]"], "cudagraph_capture_sizes", [1, 2]),
        (["-O3"], "optimization_level", 3),
        (["-O", "0"], "optimization_level", 0),
        (["-O=2"], "optimization_level", 2),
        (["-O", '{"mode": 3}'], "compilation_config", {"mode": 3}),
        (["-O.mode", "3"], "compilation_config", {"mode": 3}),
    ],
)
def test_spellings(words: list[str], name: str, value: Any) -> None:
    assert getattr(engine(*words), name) == value


def test_a_value_that_looks_like_a_boolean_stays_a_value() -> None:
    assert parse("true", "--enforce-eager").model_path == "true"
    assert engine("--tokenizer", "true").tokenizer == "true"


def test_several_served_names() -> None:
    assert build(ServerArgs, parse("model", "--served-model-name", "a", "b")).served_model_name == ["a", "b"]


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "a", "b"],
        ["--api-key", "a", "--api-key=b"],
        ["--api-key", '["a", "b"]'],
        ["--api_key=a", "--api-key", "b"],
    ],
)
def test_lists_are_words_or_json_or_the_flag_again(words: list[str]) -> None:
    assert build(ServerArgs, parse("model", *words)).api_key == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-num-seq", "3"], "unknown flag --max-num-seq; did you mean --max-num-seqs?"),
        (["--bogus"], "unknown flag --bogus; see --help"),  # not --uds: hyphens alone are alike
        (["--max_modellen=3"], "unknown flag --max-modellen; did you mean --max-model-len?"),
        (["--xyzzy"], "unknown flag --xyzzy; see --help"),
        (["--compilation-config", "{'a': 1}"], "--compilation-config: not JSON"),
        (["--mm-processor-kwargs", "[1]"], "argument --mm-processor-kwargs: expected a JSON object"),
        (["--limit-mm-per-prompt", "image=four"], "argument --limit-mm-per-prompt: expected JSON or name=value"),
        (["--limit-mm-per-prompt", "image"], "argument --limit-mm-per-prompt: not JSON"),
        (["--allowed-origins", '["a"'], "argument --allowed-origins: not JSON"),
        (["--allowed-origins", "[1]"], "argument --allowed-origins: expected a list of strings"),
        (["--port", "http"], "argument --port: expected an integer, got 'http'"),
        (
            ["--seed", "18446744073709551616"],
            "argument --seed: expected an integer of at most 64 bits, got '18446744073709551616'",
        ),
        (["--max-num-seqs", "1e30T"], "argument --max-num-seqs: expected an integer of at most 64 bits, got '1e30T'"),
        (["--dtype", "fp8"], "argument --dtype: invalid choice: 'fp8'"),
        (["--enforce-eager=maybe"], "argument --enforce-eager: expected true or false"),
        (["--kv-cache-dtype", "fp8"], "argument --kv-cache-dtype: invalid choice"),
        (["more", "words"], "unrecognized arguments"),
        (["--limit-mm-per-promt.image", "2"], "unknown flag --limit-mm-per-promt; did you mean --limit-mm-per-prompt?"),
        (["--max-num-seqs.x", "2"], "argument --max-num-seqs: it takes no keys, got --max-num-seqs.x"),
        (["--limit-mm-per-prompt.image"], "argument --limit-mm-per-prompt.image: expected one argument"),
        (["--mm-processor-kwargs.a", "1", "--mm-processor-kwargs.a.b", "1"], "a already has a value"),
        (["-O9000x"], "argument --optimization-level: expected an integer, got '9000x'"),
        (
            ["--cudagraph-capture-sizes", "one"],
            "--cudagraph-capture-sizes/--cuda-graph-sizes: expected an integer, got 'one'",
        ),
        (["--shutdown-timeout", "soon"], "argument --shutdown-timeout: expected a number, got 'soon'"),
        (["--seed", "9" * 20], "argument --seed: expected an integer of at most 64 bits, got '99"),
        (["--config", "no/such.yaml"], "--config no/such.yaml cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("model", *words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is given"),
        (["a", "--model", "b"], "two models given: 'a' and --model 'b'"),
        (["no/such/folder"], "'no/such/folder' is not a folder"),
        (["x", "--allow-pickle"], "not available yet: --allow-pickle (only safetensors are read"),
        (["x", "--max-queued-requests", "0"], "--max-queued-requests must be at least 1, got 0"),
        (["x", "-tp", "2"], "not available yet: --tensor-parallel-size"),
        (["x", "--distributed-executor-backend", "ray"], "not available yet: --distributed-executor-backend ray"),
        (["x", "--enable-lora"], "not available yet: --enable-lora: there are no LoRA adapters"),
        (["x", "-dp", "2"], "not available yet: --data-parallel-size 2: only one device works (accepted: 1)"),
        (["x", "--task", "embed"], "not available yet: --task embed: models generate text (accepted: generate, auto)"),
        (["x", "--tool-call-parser=hermes"], "not available yet: --tool-call-parser hermes: there are no tool calls"),
        (["x", "--speculative-config.model", "y"], "not available yet: --speculative-config"),
        (["x", "--uds", ""], "--uds is empty"),
        (["x", "--served-model-name", "a", ""], "--served-model-name is empty"),
        (["x", "--port", "70000"], "--port must be at most 65535, got 70000"),
        (["x", "--root-path", "llm/"], "--root-path must begin with a slash"),
        (["x", "--ssl-ciphers", "AES"], "--ssl-ciphers needs --ssl-certfile"),
    ],
)
def test_what_resolve_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trifocal serve: ") and message in error and error.count("\n") == 1


def test_the_model_may_be_named_twice_alike() -> None:
    assert serve_command.engine_args(parse("a", "--model", "a")).model == "a"


def test_flags_without_effect_are_accepted_and_told() -> None:
    namespace = parse(
        "model", "--disable-log-requests", "--swap-space=8", "--revision", "main", "--disable-cascade-attn"
    )
    flags = ("--disable-log-requests", "--disable-cascade-attn", "--swap-space", "--revision")
    assert [note.split()[0] for note in notes(namespace)] == list(flags)
    assert notes(parse("model", "--enforce-eager")) == []


def test_every_flag_of_vllm_is_either_told_or_refused_unless_its_value_is_neutral() -> None:
    words: dict[type, list[str]] = {bool: [], int: ["7"], float: ["7"], str: ["x"], dict: ['{"a": 1}'], list: ["x"]}
    for option in OPTIONS:
        flag = "--" + option.name.replace("_", "-")
        given = parse("model", flag, *words[option.kind])
        if option.neutral is None:
            [note] = notes(given)
            assert note == f"{flag} has no effect: {option.why}"
        else:
            with pytest.raises(NotAvailableYetError, match=f"^not available yet: {flag}( .*)?: {option.why}"):
                notes(given)
        for value in option.neutral or ():
            if option.kind is not list:
                neutral = (
                    f"--no-{flag[2:]}"
                    if option.kind is bool
                    else f"{flag}={json.dumps(value) if option.kind is dict else value}"
                )
                assert notes(parse("model", neutral)) == []


def test_a_token_may_be_given_without_a_value() -> None:
    assert notes(parse("model", "--hf-token", "--enforce-eager")) == ["--hf-token has no effect: nothing is downloaded"]


def test_short_names_and_other_names() -> None:
    assert notes(parse("model", "-dp", "1", "-dcp=1", "-n", "1", "-r", "0")) == []
    assert notes(parse("model", "--speculative-config", "None", "--kv-transfer-config=", "-dpn", "None")) == []
    told = {note.split()[0] for note in notes(parse("model", "-ep", "-asc", "4"))}
    assert told == {"--enable-expert-parallel", "--api-server-count"}
    args = build(ServerArgs, parse("model", "--max-num-queued-reqs", "7", "--max_num_queued_tokens=9k"))
    assert (args.max_queued_requests, args.max_queued_tokens) == (7, 9000)


def test_no_flag_is_both_used_and_ignored() -> None:
    used = set(EngineArgs.__dataclass_fields__)
    assert used.isdisjoint(option.name for option in (*OPTIONS, *PYTHON_OPTIONS))
    assert set(ServerArgs.__dataclass_fields__).isdisjoint(option.name for option in OPTIONS)
    names = [option.name for option in (*OPTIONS, *PYTHON_OPTIONS)]
    assert len(set(names)) == len(names)


def test_words_written_for_a_child_mean_the_same() -> None:
    words = ["--max-num-seqs", "3", "--no-enable-prefix-caching", "--limit-mm-per-prompt", "image=2", "--enforce-eager"]
    words += ["--max-model-len=auto", "--cudagraph-capture-sizes", "1", "2", "-O3", "-cc.mode", "3"]
    again = to_words(EngineArgs, parse("model", *words))
    assert engine(*again) == engine(*words)
    assert "--model" not in again


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trifocal {__version__}\n"
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    assert main([]) == 2
    assert main(["srve"]) == 2
    assert "did you mean serve?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert f"usage: trifocal {command}" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "--help=all"])
def test_the_help_of_serve_is_complete(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", word])
    text = capsys.readouterr().out
    for name in [*EngineArgs.__dataclass_fields__, *ServerArgs.__dataclass_fields__]:
        assert f"--{name.replace('_', '-')}" in text
    assert "ENGINE_ITERATION_TIMEOUT_S" in text and "scheduling:" in text


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom trifocal.cli import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "from trifocal import SamplingParams\n"
        "slow = {'torch', 'fastapi', 'transformers', 'av'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_lazy_exports() -> None:
    import trifocal

    assert "LLM" in dir(trifocal) and trifocal.EngineArgs is EngineArgs
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trifocal.nonsense


def test_the_module_path_of_vllm_takes_the_same_flags() -> None:
    words = [sys.executable, "-m", "trifocal.entrypoints.openai.api_server", "--model", "no/such/folder", "--port=1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "'no/such/folder' is not a folder" in done.stderr and "Traceback" not in done.stderr
