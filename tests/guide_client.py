"""The client script of the service's guide, word for word (the guide's page has lost its indentation)."""

import argparse
import base64
import json

import requests


# Function to encode the image
def encode_image(image_path):
    with open(image_path, "rb") as image_file:
        return base64.b64encode(image_file.read()).decode("utf-8")


def get_stop_token_ids(model_path):
    with open(f"{model_path}/config.json") as file:
        data = json.load(file)
    if data.get("architectures")[0] == "InternVLChatModel":
        return [0, 92543, 92542]
    return None


def post_img(args):
    # Path to your image
    image_path = args.image_path
    # Getting the base64 string
    image_base64 = encode_image(image_path)
    stop_token_ids = args.stop_token_ids if args.stop_token_ids is not None else get_stop_token_ids(args.model_path)
    headers = {"Content-Type": "application/json"}
    payload = {
        "model": args.model_path,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": args.text},
                    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image_base64}"}},
                ],
            }
        ],
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "ignore_eos": args.ignore_eos,
        "stream": args.stream,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "stop_token_ids": stop_token_ids,
        "repetition_penalty": args.repetition_penalty,
    }
    response = requests.post(
        f"http://{args.docker_ip}:{args.served_port}/v1/chat/completions", headers=headers, json=payload
    )
    print(response.json())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    # Mandatory
    parser.add_argument("--model-path", type=str, required=True)
    parser.add_argument("--image-path", type=str, required=True)
    parser.add_argument("--docker-ip", type=str, required=True)
    parser.add_argument("--served-port", type=str, required=True)
    parser.add_argument("--text", type=str, required=True)
    # Optional
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--ignore-eos", type=bool, default=False)
    parser.add_argument("--top-k", type=int, default=-1)
    parser.add_argument("--top-p", type=int, default=1.0)
    parser.add_argument("--stream", type=int, default=False)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--stop-token-ids", nargs="+", type=int, default=None)
    args = parser.parse_args()
    post_img(args)
