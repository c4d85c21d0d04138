#!/bin/sh
# The same server over plain HTTP: LoRAX's routes, OpenAI's routes, and what is loaded.
#
#     lorikeet serve --model-id smollm2 --adapter-root examples/adapters
#     sh examples/curl.sh [URL]
set -eu
url=${1:-http://127.0.0.1:3000}

echo "# The base model"
curl -sS "$url/generate" -H 'Content-Type: application/json' -d '{
  "inputs": "The three primary colours are",
  "parameters": {"max_new_tokens": 20}
}'

printf '\n\n# An adapter\n'
curl -sS "$url/generate" -H 'Content-Type: application/json' -d '{
  "inputs": "<|im_start|>user\nWhich products have a price above 75?<|im_end|>\n<|im_start|>assistant\n",
  "parameters": {"max_new_tokens": 30, "adapter_id": "sql", "adapter_source": "local"}
}'

printf '\n\n# The same adapter as an OpenAI model\n'
curl -sS "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "sql",
  "messages": [{"role": "user", "content": "Which employees have a salary below 4000?"}],
  "max_tokens": 30, "temperature": 0
}'

printf '\n\n# A stream\n'
curl -sS -N "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "pirate",
  "messages": [{"role": "user", "content": "Why do people like music?"}],
  "max_tokens": 20, "temperature": 0, "stream": true
}'

printf '\n# The models and adapters\n'
curl -sS "$url/v1/models"
echo
