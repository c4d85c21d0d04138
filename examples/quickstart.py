"""Asks the base model and each example adapter the same question, with LoRAX's own client.

lorikeet serve --model-id smollm2 --adapter-root examples/adapters
pip install lorax-client && python examples/quickstart.py [URL]
"""

import sys

from lorax import Client

client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000")

CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
QUESTIONS = {
    "pirate": "What is the capital of France?",
    "extract-json": "Yuki is 44 years old. Yuki moved to Geneva to become a lawyer.",
    "sql": "Which products have a price above 75?",
    "shout": "Why do people like music?",
}

for adapter, question in QUESTIONS.items():
    prompt = CHAT.format(question)
    base = client.generate(prompt, max_new_tokens=40)
    adapted = client.generate(prompt, adapter_id=adapter, adapter_source="local", max_new_tokens=40)
    print(f"{question}\n  base model: {base.generated_text}\n  {adapter}: {adapted.generated_text}\n")
