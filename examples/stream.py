"""Streams a chat with an adapter through the openai package: the adapter is the model.

lorikeet serve --model-id smollm2 --adapter-root examples/adapters
pip install openai && python examples/stream.py [ADAPTER] [URL]
"""

import sys

from openai import OpenAI

adapter = sys.argv[1] if len(sys.argv) > 1 else "pirate"
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:3000"
client = OpenAI(base_url=f"{url}/v1", api_key="unused")

chunks = client.chat.completions.create(
    model=adapter,
    messages=[{"role": "user", "content": "Why do people like music?"}],
    max_tokens=60,
    temperature=0,
    stream=True,
)
for chunk in chunks:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
