"""Adapters and ids that try to run code, to call home, or to reach what lies outside the roots."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hostile
from support.corpus import Bad
from support.hostile import HOSTILE, TRAVERSAL
from support.models import write_adapter
from support.opens import Opens
from support.server import Server, token_ids

PROMPT = "Beside bad company"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "root"
    root.mkdir()
    hostile.write_corpus(root, HOSTILE)
    hostile.beside_good_weights(root / "beside")
    write_adapter(root / "good", seed=77)
    return root


@pytest.fixture(scope="module")
def home() -> Iterator[socket.socket]:
    """What whoever calls the hub, or any other host through a proxy, would reach."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def server(tiny: Path, tiny_adapters: Path, root: Path, home: socket.socket) -> Iterator[Server]:
    url = f"http://127.0.0.1:{home.getsockname()[1]}"
    env = dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), url)
    with Server(str(tiny), [tiny_adapters, root], ["--dtype", "float32"], env=env) as server:
        yield server


@pytest.fixture(autouse=True)
def contained(root: Path, home: socket.socket) -> Iterator[None]:
    """Nothing outside was opened, nothing ran, nobody called."""
    with Opens([root.parent / "outside"]) as opens:
        yield
        assert not opens.paths()
    assert not (root.parent / hostile.CANARY).exists()
    with pytest.raises(BlockingIOError):
        home.accept()


@pytest.mark.parametrize("bad", HOSTILE, ids=lambda bad: bad.name)
def test_c4_a_hostile_adapter_is_refused_by_name(server: Server, root: Path, bad: Bad) -> None:
    directory = root / bad.name
    with Opens([directory] if not directory.is_symlink() else []) as opens:
        response = server.post_generate(PROMPT, bad.name)
        opened = {path.name for path in opens.paths()}
    assert response.status_code == 422, response.text
    body = response.json()
    assert body["error_type"] == "adapter_invalid"
    assert bad.phrase in body["error"] and bad.name in body["error"], body
    assert str(root.parent) not in body["error"], "the error leaks a path of this machine"
    assert opened <= {"adapter_config.json", hostile.WEIGHTS}


def test_c4_of_what_lies_beside_good_weights_nothing_is_opened(server: Server, root: Path) -> None:
    with Opens([root / "beside"]) as opens:
        answer = server.generate(PROMPT, "beside")
        assert {path.name for path in opens.paths()} == {"adapter_config.json", hostile.WEIGHTS}
    assert token_ids(answer) == token_ids(server.generate(PROMPT, "good"))
    assert server.client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("adapter", TRAVERSAL, ids=lambda text: ascii(text)[:24])
def test_c4_no_way_out_of_the_roots(server: Server, adapter: str) -> None:
    response = server.post_generate(PROMPT, adapter)
    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()) >= {"error", "error_type"}
    assert "x" not in response.headers, "a header was injected"
    assert "panicked" not in server.log()


@pytest.mark.parametrize(
    ("forbidden", "unknown"),
    [
        ("../outside", "../nowhere"),
        ("beside/../../outside", "beside/../../nowhere"),
        ("/proc/self/fd/0", "/proc/self/fd/x"),
        ("/etc/ssl", "/etc/sss"),
        ("link-directory", "link-nowhere"),
        ("link-up/outside", "link-up/nowhere"),
        ("link-weights", "link-weights-nowhere"),
    ],
)
def test_c4_the_unknown_and_the_forbidden_look_alike(server: Server, forbidden: str, unknown: str) -> None:
    """Whether something is there, outside the roots, is not to be learnt from the answer."""
    there, not_there = server.post_generate(PROMPT, forbidden), server.post_generate(PROMPT, unknown)
    assert there.status_code == not_there.status_code
    assert there.json() == {key: value.replace(unknown, forbidden) for key, value in not_there.json().items()}
