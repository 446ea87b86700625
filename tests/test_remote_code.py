"""Python files of a checkpoint folder: never imported without --trust-remote-code, and only the tokenizer's with it.

Each file of the folder leaves a trace when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.api.helpers import image_part, picture
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.llm import LLM
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[1]
TRACE = "from pathlib import Path\nPath({folder!r}, 'ran-' + {name!r}).touch()\n"
# Bytes as tokens 0 to 255, "é" also as token 256, and what tokenizer_config.json adds.
CODE = """
from transformers import PreTrainedTokenizer
from .helper_canary import LETTERS

class CanaryTokenizer(PreTrainedTokenizer):
    vocab_files_names = {}
    @property
    def vocab_size(self):
        return len(LETTERS)
    def get_vocab(self):
        return {**{letter: index for index, letter in enumerate(LETTERS)}, **self.added_tokens_encoder}
    def _tokenize(self, text):
        return list(text.encode().decode("latin-1"))
    def _convert_token_to_id(self, token):
        return LETTERS.index(token)
    def _convert_id_to_token(self, index):
        return LETTERS[index] if index < len(LETTERS) else None
    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).encode("latin-1", "replace").decode(errors="replace")
    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()
"""
FAST = """
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

class FastCanary(PreTrainedTokenizerFast):
    def __init__(self, **kwargs):
        super().__init__(tokenizer_object=Tokenizer.from_file({file!r}), **kwargs)
"""


def checkpoint(folder: Path, reference: Any = ("tokenization_canary.CanaryTokenizer", None), **config: Any) -> Path:
    """A whole tiny model whose tokenizer is Python code, and more Python files that auto_map names."""
    tiny.write_checkpoint(folder, tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    bodies = {
        "tokenization": CODE, "helper": "LETTERS = [chr(index) for index in range(256)]", "configuration": "",
        "modeling": "",
    }  # fmt: skip
    for name, body in bodies.items():
        text = TRACE.format(folder=str(folder), name=name) + body
        (folder / f"{name}_canary.py").write_text(text, encoding="utf-8")
    entries = {
        str(token_id): {"content": name, "special": True, "normalized": False}
        for name, token_id in tiny.token_ids().items()
    }
    settings = {
        "tokenizer_class": "CanaryTokenizer", "auto_map": {"AutoTokenizer": reference}, "eos_token": "<|im_end|>",
        "added_tokens_decoder": entries, "chat_template": tiny.CHAT_TEMPLATE, **config,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = json.loads((folder / "config.json").read_text())
    model["auto_map"] = {"AutoConfig": "configuration_canary.Config", "AutoModel": "modeling_canary.Model"}
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    return folder


def traces(folder: Path) -> list[str]:
    """Which files ran."""
    return sorted(path.name.removeprefix("ran-") for path in folder.glob("ran-*"))


def serve(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trifocal", "serve", str(folder), "--host", "127.0.0.1", "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "0.05"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


# -------------------------------------------------------------------------------------------- without the flag


def test_nothing_runs_and_the_error_says_what_would(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    for load, name in ((load_tokenizer, "--trust-remote-code"), (LLM, "trust_remote_code")):
        with pytest.raises(ConfigError, match=f" {name} runs it with all your rights") as caught:
            load(str(folder))
        assert "tokenization_canary.CanaryTokenizer" in str(caught.value) and "read the code first" in str(caught.value)
    assert traces(folder) == []


def test_the_server_refuses_in_one_sentence(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    done = serve(folder)
    assert done.returncode == 2, done.stderr
    assert "--trust-remote-code" in done.stderr and "Traceback" not in done.stderr
    assert traces(folder) == []


@pytest.mark.parametrize("is_trusted", [False, True])
def test_data_files_are_used_where_they_are_enough(tmp_path: Path, is_trusted: bool) -> None:
    """As in the released folders, whose Python tokenizer only adds conveniences: it need not run, flag or not."""
    folder = checkpoint(tmp_path)
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    with LLM(str(folder), trust_remote_code=is_trusted, num_gpu_blocks_override=20) as llm:
        output = llm.chat([{"role": "user", "content": "hello"}], SamplingParams(max_tokens=3), use_tqdm=False)[0]
    assert output.outputs[0].token_ids
    assert traces(folder) == []


def test_a_folder_without_any_tokenizer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, None, tokenizer_class="LlamaTokenizer")
    for is_trusted in (False, True):
        with pytest.raises(
            ConfigError, match=r"tokenizer\.json is missing, as are the other files that could make a Llama"
        ):
            load_tokenizer(str(folder), trust_remote_code=is_trusted)


# ----------------------------------------------------------------------------------------------- with the flag


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("trusted"))


@pytest.fixture(scope="module")
def tokenizer(trusted: Path) -> Tokenizer:
    return load_tokenizer(str(trusted), trust_remote_code=True)


def test_the_tokenizer_runs_and_nothing_else(tokenizer: Tokenizer, trusted: Path) -> None:
    assert tokenizer.encode("aé<|im_end|>") == [97, 195, 169, tiny.token_ids()["<|im_end|>"]]
    assert traces(trusted) == ["helper", "tokenization"]


def test_it_answers_as_any_tokenizer(tokenizer: Tokenizer) -> None:
    ids = tiny.token_ids()
    assert tokenizer.special_ids == frozenset(ids.values())
    assert tokenizer.eos_token_id == tokenizer.token_to_id("<|im_end|>") == ids["<|im_end|>"]
    assert tokenizer.vocab_size == max(ids.values()) + 1
    assert tokenizer.longest_token == max(map(len, ids))
    assert tokenizer.id_to_token(98) == "b" and tokenizer.id_to_token(10**6) is None
    assert tokenizer.token_bytes(98) == b"b" and tokenizer.token_bytes(10**6) == b""
    assert tokenizer.token_to_id("nothing") is None
    assert tokenizer.decode([97, ids["<|im_end|>"], 10**6]) == "a"
    assert tokenizer.decode([97, ids["<|im_end|>"]], skip_special_tokens=False) == "a<|im_end|>"
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>"}


@pytest.mark.parametrize("text", ["hello", "<|im_end|>", "é<|im_end|>\n<|im_start|>system", "<|im_", "a <"])
def test_users_write_no_control_token(tokenizer: Tokenizer, text: str) -> None:
    assert not set(tokenizer.encode_plain(text)) & tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    guard = tokenizer.guard()
    ids = tokenizer.encode_chat(f"<|im_start|>{guard.hide(text)}<|im_end|>", guard.protected)
    specials = [tokenizer.id_to_token(token_id) for token_id in ids if token_id in tokenizer.special_ids]
    assert specials == ["<|im_start|>", "<|im_end|>"]
    assert tokenizer.decode(ids) == text


def test_text_that_the_tokenizer_cannot_write_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python tokenizer that knows no `split_special_tokens`: better no answer than a forged control token."""
    python = tokenizer._python  # type: ignore[attr-defined]
    encode = python.encode
    monkeypatch.setattr(python, "encode", lambda text, split_special_tokens=False, **options: encode(text, **options))
    with pytest.raises(RequestError, match="cannot take '<|im_end|>' as plain text"):
        tokenizer.encode_plain("a<|im_end|>")
    assert tokenizer.encode_plain("a") == [97]


def test_a_model_answers_through_it(trusted: Path) -> None:
    with LLM(str(trusted), trust_remote_code=True, num_gpu_blocks_override=20) as llm:
        sampling = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
        output = llm.chat([{"role": "user", "content": "hello"}], sampling, use_tqdm=False)[0]
    prompt = output.prompt_token_ids
    assert bytes(token_id for token_id in prompt if token_id < 256).decode().endswith("user\nhello\nassistant\n")
    assert len(output.outputs[0].token_ids) == 5
    assert traces(trusted) == ["helper", "tokenization"]


def test_a_fast_tokenizer_in_python(tmp_path: Path) -> None:
    """Its fast half is taken; the slow one, which `auto_map` names first, does not run."""
    folder = checkpoint(tmp_path / "model", ["tokenization_canary.CanaryTokenizer", "fast_canary.FastCanary"])
    file = tmp_path / "elsewhere.json"
    file.write_text(tiny.tokenizer_json(), encoding="utf-8")
    (folder / "fast_canary.py").write_text(FAST.format(file=str(file)), encoding="utf-8")
    tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
    assert tokenizer.encode("the quick<|im_end|>") == tokenizer.backend.encode("the quick<|im_end|>").ids
    assert traces(folder) == []


def test_code_that_fails_or_lies_elsewhere(tmp_path: Path) -> None:
    cases = {
        "tokenization_canary.Nothing": "AttributeError", "absent.Class": "ModuleNotFoundError",
        "someone/else--tokenization.Class": "in the folder", "../up.Class": "in the folder", "broken.Class": "boom",
    }  # fmt: skip
    for index, (reference, what) in enumerate(cases.items()):
        folder = checkpoint(tmp_path / str(index), [reference, None])
        (folder / "broken.py").write_text("raise RuntimeError('boom')", encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"the tokenizer .* failed: .*{what}"):
            load_tokenizer(str(folder), trust_remote_code=True)


def test_the_server_passes_the_flag_on(trusted: Path) -> None:
    """Both processes of a server build the tokenizer from this configuration."""
    config = resolve(EngineArgs(model=str(trusted), trust_remote_code=True))
    builder = PromptBuilder(config)
    try:
        assert builder.render([{"role": "user", "content": "hello"}]).token_ids[-1] == ord("\n")
    finally:
        builder.close()


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    """A server that is started inside a checkpoint folder, as `cd FOLDER; trifocal serve .` does: no module of that
    folder takes the place of one that the engine or a decoder process imports."""
    folder = tiny.write_checkpoint(tmp_path)
    for name in ("msgspec", "numpy", "PIL", "safetensors"):
        (folder / f"{name}.py").write_text(TRACE.format(folder=str(folder), name=name))
    code = f"""
import os
from trifocal.cli.local_server import LocalServer
import httpx
os.chdir({str(folder)!r})
with LocalServer([".", "--served-model-name", "m"]) as server:
    part = {image_part(picture())!r}
    body = {{"model": "m", "max_tokens": 1, "messages": [{{"role": "user", "content": [part]}}]}}
    httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).raise_for_status()
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.glob("ran-*")] == []
