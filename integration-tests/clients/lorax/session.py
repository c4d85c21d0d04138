"""What a user of lorax-client does, printed as JSON for the test to compare."""

import asyncio
import json
import sys

from lorax import AsyncClient, Client
from lorax.errors import ValidationError

url = sys.argv[1]
client = Client(url, timeout=60)
PROMPT = "Hello from lorax-client"

plain = client.generate(PROMPT, max_new_tokens=12)
adapted = client.generate(
    PROMPT,
    adapter_id="a3",
    adapter_source="local",
    max_new_tokens=12,
    decoder_input_details=True,
    return_k_alternatives=3,
)
streamed = list(client.generate_stream(PROMPT, adapter_id="a3", adapter_source="local", max_new_tokens=12))
sampled = client.generate(
    PROMPT, do_sample=True, seed=7, temperature=0.9, top_k=10, top_p=0.9, typical_p=0.9, best_of=None
)
best = client.generate(PROMPT, do_sample=True, temperature=1.2, best_of=2, max_new_tokens=8)
try:
    client.generate(PROMPT, max_new_tokens=10**9)
    refused = None
except ValidationError as error:
    refused = str(error)


async def concurrently() -> list[str]:
    asynchronous = AsyncClient(url)
    answers = await asyncio.gather(
        *(
            asynchronous.generate(PROMPT, adapter_id=f"a{i}", adapter_source="local", max_new_tokens=12)
            for i in range(8)
        )
    )
    return [answer.generated_text for answer in answers]


json.dump(
    {
        "plain": plain.generated_text,
        "adapted": adapted.model_dump(),
        "streamed": "".join(event.token.text for event in streamed),
        "streamed_last": streamed[-1].model_dump(),
        "sampled_seed": sampled.details.seed,
        "best_of": len(best.details.best_of_sequences or []),
        "refused": refused,
        "concurrent": asyncio.run(concurrently()),
    },
    sys.stdout,
    default=str,
)
