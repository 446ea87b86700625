"""litellm: a picture, whole and streamed, as an OpenAI server and as a vLLM server."""

import base64
import json
import os
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
import litellm

url, model, picture, question = sys.argv[1:]
data = base64.b64encode(Path(picture).read_bytes()).decode()
parts = [
    {"type": "text", "text": question},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
]
found = {}
for provider in ("openai", "hosted_vllm"):
    request = {
        "model": f"{provider}/{model}", "api_base": f"{url}/v1", "api_key": "-", "temperature": 0, "max_tokens": 32,
        "messages": [{"role": "user", "content": parts}],
    }  # fmt: skip
    answer = litellm.completion(**request)
    chunks = litellm.completion(**request, stream=True)
    found[provider] = {
        "answer": answer.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "tokens": answer.usage.total_tokens,
    }
print(json.dumps(found))
