"""Ask a running server about one image (single turn), as the client script of the service's guide does.

    python examples/online_serving.py --model-path MODEL --image-path PICTURE --docker-ip 127.0.0.1 --served-port 8000 \
        --text What is the image content?

MODEL is the name the server was started with. `--text` takes all words up to the next flag, quoted or not.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx

SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"BM": "image/bmp"}
INTERNLM2_STOP_TOKEN_IDS = [0, 92543, 92542]  # <unk>, <|im_start|>, <|im_end|> of InternVL's InternLM2 tokenizer


def boolean(text: str) -> bool:
    """`type=bool` would take the word "False" for true."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def parse_args() -> argparse.Namespace:
    """The mandatory and the optional parameters."""
    parser = argparse.ArgumentParser(description="Ask a running server about one image.", allow_abbrev=False)
    must = parser.add_argument_group("mandatory")
    must.add_argument("--model-path", required=True, help="model name the server was started with (its folder)")
    must.add_argument("--image-path", required=True, help="picture to ask about")
    must.add_argument("--docker-ip", required=True, help="address of the server")
    must.add_argument("--served-port", required=True, help="port of the server")
    must.add_argument("--text", required=True, nargs="+", help="the question; quotes are not needed")
    may = parser.add_argument_group("optional")
    may.add_argument("--temperature", type=float, default=0.0, help="randomness; 0: the likeliest token (default)")
    may.add_argument("--top-k", type=int, default=-1, help="choose among so many tokens; -1: all (default)")
    may.add_argument("--top-p", type=float, default=1.0, help="choose among this share of probability, in (0, 1]")
    may.add_argument("--max-tokens", type=int, default=16, help="longest answer in tokens (default: 16)")
    may.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less (default: 1.0)")
    may.add_argument("--stop-token-ids", nargs="+", type=int, help="tokens that end the answer")
    for flag, meaning in (
        ("--stream", "print the answer as it is generated"),
        ("--ignore-eos", "go on after the end-of-sequence token, up to --max-tokens"),
    ):
        text = f"{meaning}; alone or with true or false (default: false)"
        may.add_argument(flag, type=boolean, nargs="?", const=True, default=False, help=text)
    return parser.parse_args()


def data_url(path: str) -> str:
    """The file as a data URL; its type is read from its first bytes, not from its name."""
    data = Path(path).read_bytes()
    mime = next((mime for magic, mime in SIGNATURES.items() if data.startswith(magic)), None)
    if mime is None:
        mime = "image/webp" if data[8:12] == b"WEBP" else "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def default_stop_token_ids(model_path: str) -> list[int] | None:
    """InternVL on InternLM2 needs stop tokens; known only if the model's folder is on this machine."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    if config.get("architectures") != ["InternVLChatModel"]:
        return None
    language_model = config.get("llm_config", {}).get("architectures")
    return INTERNLM2_STOP_TOKEN_IDS if language_model == ["InternLM2ForCausalLM"] else None


def request_body(args: argparse.Namespace) -> dict[str, Any]:
    """The chat request; stop tokens are sent only if there are any."""
    content = [
        {"type": "text", "text": " ".join(args.text)},
        {"type": "image_url", "image_url": {"url": data_url(args.image_path)}},
    ]
    body = {
        "model": args.model_path,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "repetition_penalty": args.repetition_penalty,
        "ignore_eos": args.ignore_eos,
        "stream": args.stream,
    }
    stop_token_ids = args.stop_token_ids or default_stop_token_ids(args.model_path)
    return body | ({"stop_token_ids": stop_token_ids} if stop_token_ids else {})


def print_stream(response: httpx.Response) -> int:
    """Print pieces of text as they arrive."""
    for line in response.iter_lines():
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            print(f"\nerror: {event['error']}", file=sys.stderr)
            return 1
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
    print()
    return 0


def main() -> int:
    """Send the request and print the answer: text if streaming, else the whole JSON body. 2: the picture is missing."""
    args = parse_args()
    try:
        body = request_body(args)
    except OSError as error:
        print(f"--image-path {args.image_path}: {error.strerror}", file=sys.stderr)
        return 2
    url = f"http://{args.docker_ip}:{args.served_port}/v1/chat/completions"
    is_local = args.docker_ip in ("127.0.0.1", "localhost")  # then no proxy of the environment is wanted
    try:
        with (
            httpx.Client(timeout=600.0, trust_env=not is_local) as client,
            client.stream("POST", url, json=body) as response,
        ):
            if response.status_code == 200 and args.stream:
                return print_stream(response)
            response.read()
            print(response.text)
            return 0 if response.status_code == 200 else 1
    except (httpx.HTTPError, OSError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
