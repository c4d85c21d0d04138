"""What a user of the openai package does, printed as JSON for the test to compare."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0)
MESSAGES = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
]

models = [model.model_dump() for model in client.models.list()]
base = next(model["id"] for model in models if model["parent"] is None)
chat = client.chat.completions.create(
    model="a2", messages=MESSAGES, max_completion_tokens=10, temperature=0, logprobs=True, top_logprobs=2
)
streamed = {"text": "", "roles": 0, "usage": None}
for chunk in client.chat.completions.create(
    model="a2",
    messages=MESSAGES,
    max_completion_tokens=10,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
):
    for choice in chunk.choices:
        streamed["text"] += choice.delta.content or ""
        streamed["roles"] += choice.delta.role is not None
    streamed["usage"] = chunk.usage and chunk.usage.model_dump()
choices = client.chat.completions.create(model=base, messages=MESSAGES, n=3, max_tokens=5, seed=3)
completion = client.completions.create(
    model="a2", prompt=[[10, 11, 12], [13, 14]], max_tokens=1, echo=True, logprobs=1, temperature=0
)
stopped = client.completions.create(model=base, prompt="stop", max_tokens=20, temperature=0)
text = stopped.choices[0].text
cut = client.completions.create(model=base, prompt="stop", max_tokens=20, temperature=0, stop=text[4:6])
try:
    client.chat.completions.create(model="no-such-adapter", messages=MESSAGES)
    unknown = None
except openai.NotFoundError as error:
    unknown = error.code
try:
    client.completions.create(model=base, prompt="x", top_p=7)
    invalid = None
except openai.BadRequestError as error:
    invalid = error.param

json.dump(
    {
        "models": models,
        "chat": chat.model_dump(),
        "streamed": streamed,
        "choices": [choice.model_dump() for choice in choices.choices],
        "completion": completion.model_dump(),
        "whole": text,
        "cut": cut.choices[0].model_dump(),
        "unknown": unknown,
        "invalid": invalid,
    },
    sys.stdout,
)
