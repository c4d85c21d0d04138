"""Third-party clients, unchanged, against the real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.server import Server

Run = Callable[[str], dict[str, Any]]


def test_lorax_client(run_client: Run, tiny_server: Server) -> None:
    session = run_client("lorax")
    prompt = "Hello from lorax-client"
    assert session["plain"] == tiny_server.generate(prompt, max_new_tokens=12)["generated_text"]
    expected = tiny_server.generate(prompt, "a3", max_new_tokens=12)
    adapted = session["adapted"]
    assert adapted["generated_text"] == expected["generated_text"] != session["plain"]
    assert [t["id"] for t in adapted["details"]["tokens"]] == [t["id"] for t in expected["details"]["tokens"]]
    assert all(len(token["alternative_tokens"]) == 3 for token in adapted["details"]["tokens"])
    assert len(adapted["details"]["prefill"]) == adapted["details"]["prompt_tokens"] == len(prompt)
    assert session["streamed"] == adapted["generated_text"] == session["streamed_last"]["generated_text"]
    assert isinstance(session["sampled_seed"], int)
    assert session["best_of"] == 1
    assert "max_new_tokens" in session["refused"]
    assert session["concurrent"] == [
        tiny_server.generate(prompt, f"a{index}", max_new_tokens=12)["generated_text"] for index in range(8)
    ]


def test_openai_client(run_client: Run, tiny_server: Server) -> None:
    session = run_client("openai")
    base = next(model for model in session["models"] if model["parent"] is None)
    chat, streamed = session["chat"], session["streamed"]
    assert chat["model"] == "a2"
    assert chat["choices"][0]["message"]["content"] == streamed["text"] != ""
    assert streamed["roles"] == 1
    assert chat["usage"]["completion_tokens"] == streamed["usage"]["completion_tokens"] == 10
    for entry in chat["choices"][0]["logprobs"]["content"]:
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
    assert [choice["index"] for choice in session["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in session["choices"]}) > 1
    first, second = session["completion"]["choices"]
    assert first["logprobs"]["token_logprobs"][0] is None
    assert len(first["logprobs"]["tokens"]) == 4
    assert len(second["logprobs"]["tokens"]) == 3
    assert session["cut"]["text"] == session["whole"][: session["whole"].index(session["whole"][4:6])]
    assert session["cut"]["finish_reason"] == "stop"
    assert session["unknown"] == "model_not_found"
    assert session["invalid"] == "top_p"
    listed = {model["id"]: model for model in tiny_server.client.get("/v1/models").json()["data"]}
    assert {f"a{index}" for index in range(16)} < listed.keys()
    assert listed["a2"]["parent"] == listed["a15"]["parent"] == base["id"]


def test_text_generation_client(run_client: Run, tiny_server: Server) -> None:
    session = run_client("text_generation")
    expected = tiny_server.generate("Hello from text-generation", max_new_tokens=10)
    assert session["text"] == expected["generated_text"] == session["streamed"]
    assert session["tokens"] == expected["details"]["generated_tokens"]
    assert session["chat"]
