"""What a user of the text-generation client does, printed as JSON for the test to compare."""

import json
import sys

from text_generation import Client

client = Client(sys.argv[1], timeout=60)
PROMPT = "Hello from text-generation"
answer = client.generate(PROMPT, max_new_tokens=10)
streamed = "".join(event.token.text for event in client.generate_stream(PROMPT, max_new_tokens=10))
chat = client.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=5, temperature=0.0)
json.dump(
    {
        "text": answer.generated_text,
        "tokens": answer.details.generated_tokens,
        "streamed": streamed,
        "chat": chat.choices[0].message.content,
    },
    sys.stdout,
)
