"""The openai client: a picture, whole and streamed with usage; a raw completion; the list of models."""

import base64
import json
import sys
from pathlib import Path

import openai

url, model, picture, question = sys.argv[1:]
data = base64.b64encode(Path(picture).read_bytes()).decode()
client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
parts = [
    {"type": "text", "text": question},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "auto"}},
]
request = {"model": model, "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 32}
answer = client.chat.completions.create(**request)
with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
    streamed = stream.get_final_completion()
completion = client.completions.create(model=model, prompt="Hello", max_tokens=4)
found = {
    "answer": answer.choices[0].message.content,
    "streamed": streamed.choices[0].message.content,
    "tokens": [answer.usage.total_tokens, streamed.usage.total_tokens],
    "finish_reason": answer.choices[0].finish_reason,
    "completion_tokens": completion.usage.completion_tokens,
    "models": [card.id for card in client.models.list()],
}
print(json.dumps(found))
