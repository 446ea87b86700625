"""langchain-openai: a picture, whole, streamed, and two at once."""

import base64
import json
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url, model, picture, question = sys.argv[1:]
data = base64.b64encode(Path(picture).read_bytes()).decode()
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="-", model=model, temperature=0, max_tokens=32, max_retries=0)
parts = [
    {"type": "text", "text": question},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
]
messages = [HumanMessage(parts)]
answer = chat.invoke(messages)
found = {
    "answer": answer.content,
    "streamed": "".join(chunk.content for chunk in chat.stream(messages)),
    "batch": [each.content for each in chat.batch([messages, messages])],
    "tokens": answer.usage_metadata["total_tokens"],
}
print(json.dumps(found))
