"""About a hundred adapters that nobody should serve: each is refused for its own reason, quickly, with little
memory, and nothing but its two files is ever opened.
"""

# One case is one line, however long.
# ruff: noqa: E501

import json
import os
import socket
import stat
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_files as build
import pytest
import torch

from lorikeet_server.errors import InvalidAdapterError, LorikeetError, NotFoundError

Case = tuple[Callable[[Path], object], str]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
GOOD = build.safetensors(build.tensors())
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
opened: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    watched = ("open", "import", "socket.connect", "subprocess.Popen", "os.exec")
    if event in watched and not isinstance(args[0], int):  # opening a descriptor opens nothing
        opened.append(f"{event} {args[0]!r}")


sys.addaudithook(_audit)


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda path: build.write(path, build.config(**changes), GOOD)


def config_bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: build.write(path, data, GOOD)


def weights(data: bytes) -> Callable[[Path], object]:
    return lambda path: build.write(path, build.config(), data)


def header(entries: Any, data: bytes = b"") -> Callable[[Path], object]:
    return weights(build.raw_safetensors(entries, data))


def tensors(changes: dict[str, torch.Tensor | None], **options: Any) -> Callable[[Path], object]:
    values = {name: value for name, value in (build.tensors() | changes).items() if value is not None}
    return lambda path: build.write(path, build.config(**options), build.safetensors(values))


def filled(name: str, value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor | None]:
    spoilt = build.tensors()[name].to(dtype)
    spoilt.view(-1)[-1] = value
    return {name: spoilt}


def special(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A good adapter with one of its files replaced by something that `make` creates."""

    def write(path: Path) -> None:
        build.write(path, build.config(), GOOD)
        (path / name).unlink()
        make(path / name)

    return write


def sparse(path: Path) -> None:
    build.write(path, b"{", GOOD)
    os.truncate(path / "adapter_config.json", 1 << 30)


def elsewhere(path: Path) -> Path:
    """A good adapter outside of every root."""
    return build.write(path.parent.parent / "outside", build.config(), GOOD)


def link_directory(path: Path) -> None:
    path.symlink_to(elsewhere(path))


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def entry(shape: list[Any], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CASES: dict[str, Case] = {
    # --- C1: the directory and the config
    "empty directory": (lambda path: path.mkdir(parents=True), "has no adapter_config.json"),
    "no config": (lambda path: build.write(path, None, GOOD), "has no adapter_config.json"),
    "no weights": (lambda path: build.write(path, build.config(), None), "has no adapter_model.safetensors"),
    "a file where a directory is expected": (lambda path: path.write_text(""), "not a directory"),
    "empty config": (config_bytes(b""), "is not JSON"),
    "invalid JSON": (config_bytes(b'{"r": 8,}'), "is not JSON"),
    "JSON list": (config_bytes(b"[]"), "holds a JSON list"),
    "JSON null": (config_bytes(b"null"), "where an object is expected"),
    "1 GiB sparse config": (sparse, "at most 1048576 are read"),
    "byte order mark": (config_bytes(b"\xef\xbb\xbf{}"), "byte order mark"),
    "UTF-16": (config_bytes('{"r": 8}'.encode("utf-16")), "not UTF-8"),
    "duplicate key": (config_bytes(b'{"r": 8, "peft_type": "LORA", "r": 4}'), '"r" twice'),
    "nested duplicate": (config_bytes(b'{"rank_pattern": {"a": 1, "a": 2}}'), '"a" twice'),
    "NaN literal": (config_bytes(b'{"lora_alpha": NaN}'), "holds NaN"),
    "Infinity literal": (config_bytes(b'{"lora_alpha": -Infinity}'), "holds -Infinity"),
    "number beyond float": (config_bytes(b'{"lora_alpha": 1e999}'), "too large"),
    "million digit number": (config_bytes(b'{"r": ' + b"9" * 1_000_000 + b"}"), "too large"),
    "deep nesting": (config_bytes(b"[" * 500_000), "nested too deeply"),
    # --- C3: options
    "no peft_type": (config(peft_type=...), "peft_type to None"),
    "IA3": (config(peft_type="IA3"), 'peft_type to "IA3"'),
    "AdaLoRA": (config(peft_type="ADALORA"), "peft_type"),
    "classifier": (config(task_type="SEQ_CLS"), "task_type"),
    "wrong base": (config(base_model_name_or_path="meta-llama/Llama-2-7b-hf"), "trained for .*Llama-2-7b.* serves"),
    "wrong base, local": (config(base_model_name_or_path="/data/Mistral-7B-v0.1"), "trained for"),
    "base without end": (config(base_model_name_or_path="a/b" + "-hf" * 300_000), "at most 1024 characters"),
    "base is a number": (config(base_model_name_or_path=7), "base_model_name_or_path to 7"),
    "r 0": (config(r=0), "r to 0; expected is a whole number from 1 to 512"),
    "r -1": (config(r=-1), "r to -1"),
    "r 65536": (config(r=65536), "r to 65536"),
    "r is a string": (config(r="8"), 'r to "8"'),
    "r is a fraction": (config(r=4.0), "r to 4.0"),
    "r is true": (config(r=True), "r to True"),
    "r null": (config(r=None), "r to None"),
    "r differs from the tensors": (config(r=8), r"has the shape \[4, 32\].*rank of 8"),
    "alpha is a string": (config(lora_alpha="NaN"), "lora_alpha"),
    "alpha 1e30": (config(lora_alpha=1e30), "lora_alpha to 1e"),
    "alpha null": (config(lora_alpha=None), "lora_alpha to None"),
    "rank_pattern r 0": (config(rank_pattern={"q_proj": 0}), "rank_pattern.*q_proj.* to 0"),
    "rank_pattern list": (config(rank_pattern=[1]), "expected is an object"),
    "alpha_pattern null value": (config(alpha_pattern={"q_proj": None}), "alpha_pattern"),
    "rank_pattern differs from the tensors": (config(rank_pattern={"q_proj": 2}), "rank of 2"),
    "broken rank_pattern": (config(rank_pattern={"(": 2}), "not a regular expression"),
    "use_rslora is a string": (config(use_rslora="yes"), "use_rslora"),
    "DoRA": (config(use_dora=True), "use_dora"),
    "lora_bias": (config(lora_bias=True), "lora_bias"),
    "bias all": (config(bias="all"), 'bias to "all"'),
    "bias lora_only": (config(bias="lora_only"), "bias"),
    "modules_to_save": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "trainable tokens": (config(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "layer replication": (config(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "aLoRA": (config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "QALoRA": (config(use_qalora=True), "use_qalora"),
    "BD-LoRA": (config(use_bdlora={"nblocks": 2}), "use_bdlora"),
    "target_parameters": (config(target_parameters=["experts.gate_up_proj"]), "target_parameters"),
    "Arrow": (config(arrow_config={"top_k": 3}), "arrow_config"),
    "KaSA": (config(kasa_config={"beta": 1}), "kasa_config"),
    "KaSA by default": (config(kasa_config={}), "sets kasa_config to {}: KaSA changes the base weights"),
    "Arrow by default": (config(arrow_config={}), "arrow_config"),
    "BD-LoRA by default": (config(use_bdlora={}), "use_bdlora"),
    "VeLoRA by default": (config(velora_config={}), "velora_config"),
    "MonteCLoRA by default": (config(monteclora_config={}), "monteclora_config"),
    "MonteCLoRA": (config(monteclora_config={"num_samples": 8}), "monteclora_config"),
    "megatron": (config(megatron_config={"a": 1}), "megatron_config"),
    "weight tying": (config(ensure_weight_tying=True), "ensure_weight_tying"),
    "fan_in_fan_out": (config(fan_in_fan_out=True), "fan_in_fan_out"),
    "PiSSA": (config(init_lora_weights="pissa"), "rewrites the base weights"),
    "PiSSA niter": (config(init_lora_weights="pissa_niter_16"), "rewrites the base weights"),
    "OLoRA": (config(init_lora_weights="OLoRA"), "rewrites the base weights"),
    "CorDA": (config(init_lora_weights="corda"), "rewrites the base weights"),
    "LoftQ": (config(init_lora_weights="loftq"), "rewrites the base weights"),
    "unknown init": (config(init_lora_weights="magic"), "init_lora_weights"),
    "unknown option": (config(use_magic=True), "use_magic"),
    "auto_map in the config": (config(auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "no targets": (config(target_modules=None), "no target_modules"),
    "half a character in an expression": (config(target_modules="(?\ud800a)"), 'half of a surrogate pair, in "target_modules"'),
    "half a character in a pattern": (config(rank_pattern={"(?\ud800a)": 3}), 'half of a surrogate pair, in "rank_pattern"'),
    "half a character in the base model": (config(base_model_name_or_path="\ud800"), 'surrogate pair, in "base_model_name_or_path"'),
    "half a character in a list": (config(target_modules=["q_proj", "\udfff"]), 'surrogate pair, in "target_modules"'),
    "half a character in a key": (config(**{"\ud800": None}), r'surrogate pair, in "\\ud800"'),
    "half a character in the metadata": (header({"__metadata__": {"format": "\udc00"}, "a": EMPTY}), "surrogate pair"),
    "empty targets": (config(target_modules=[]), "no target_modules"),
    "targets are numbers": (config(target_modules=[1]), "target_modules"),
    "zero matched modules": (config(target_modules=["query_key_value"]), "matches no module"),
    "everything excluded": (config(exclude_modules=["q_proj", "v_proj"]), "matches no module"),
    "targets without tensors": (config(target_modules=["q_proj", "v_proj", "k_proj"]), "no lora_A for it"),
    "tensors without target": (config(target_modules=["q_proj"]), "does not target"),
    "layers without list": (config(target_modules=".*_proj", layers_to_transform=[1]), "needs a list of target_modules"),
    "layers are names": (config(layers_to_transform=["one"]), "layers_to_transform"),
    "layers pattern alone": (config(layers_pattern="layers"), "without layers_to_transform"),
    "layers pattern is an expression": (config(layers_to_transform=1, layers_pattern="(a+)+"), "layers_pattern"),
    "catastrophic expression": (config(target_modules=r"(([a-z_.0-9]+)+)+(([a-z_.0-9]+)+)+!"), "matches no module"),
    "catastrophic alternatives": (config(target_modules="(.|.)" * 60 + "!"), "matches no module"),
    "catastrophic rank_pattern": (config(rank_pattern={r"(\w+\.?)+!": 2, r"(a|a|\w)*!" * 40: 2}, r=3), "rank of 3"),
    "expression that costs too much": (config(rank_pattern={r"(?:(?:.a?)*b?)*" * 270 + str(i): 2 for i in range(9)}), "too long"),
    "huge repeat": (config(target_modules="(?:(?:a{1,65000}){1,65000}){1,65000}"), "matches no module"),
    "back reference": (config(target_modules=r"(\w+)\1.*"), "groupref"),
    "inline flag": (config(target_modules="(?i).*Q_PROJ"), "inline flags"),
    "expression with a line break": (config(target_modules="(?\n2026 INFO all is well"), r"unknown extension \?\\n"),
    "group of a name from afar": (config(target_modules="(?P=" + "\u00e9" * 4000 + ")"), "unknown group name"),
    "nested expression": (config(target_modules="(" * 1000 + ")" * 1000), "target_modules"),
    "long expression": (config(target_modules="a" * 5000), "at most 4096"),
    # --- C2, L8: the header
    "empty weights": (weights(b""), "too few"),
    "seven bytes": (weights(b"1234567"), "too few"),
    "header longer than the file": (weights(struct.pack("<Q", 1000) + b"{}  "), "cut off"),
    "header of 2^63": (weights(struct.pack("<Q", 1 << 63) + b"{}  "), "at most 8388608"),
    "a pickle by another name": (weights(b"\x80\x04\x95" + bytes(100)), "announces a header"),
    "no tensors": (header({}), "holds no tensors"),
    "header is a list": (header(b"[]"), "does not start with an object"),
    "header is not JSON": (header(b'{"a": }'), "is not JSON"),
    "duplicate tensor": (header(b'{"a": {}, "a": {}}'), "twice"),
    "nested header": (header(b'{"a":' + b"[" * 100_000), "too deeply"),
    "million empty tensors": (header({f"t{i}": EMPTY for i in range(120_000)}), "no use for as many"),
    "200 empty tensors": (header({f"t{i}": EMPTY for i in range(200)}), "no use for as many"),
    "one empty tensor": (header({"t": EMPTY}), "empty or too large"),
    "8 MB of one name": (header(b'{"' + b"a" * 8_000_000 + b'":{}}'), "objects explain"),
    "8 MB of numbers": (header(b'{"a":[' + b"1," * 4_000_000 + b"1]}"), "objects explain"),
    "8 MB of blanks": (header(b"{" + b" " * 8_000_000 + b"}"), "objects explain"),
    "metadata is a list": (header({"__metadata__": []}), "__metadata__"),
    "metadata holds numbers": (header({"__metadata__": {"a": 1}}), "__metadata__"),
    "name with NUL": (header({"a\0b": EMPTY}), "tensor name"),
    "name with ../": (header({"../a": EMPTY}), "tensor name"),
    "name with a letter from afar": (header({"lora_\u0410": EMPTY}), "tensor name"),
    "shape of 2^60": (header({"a": entry([1 << 60, 1 << 60], [0, 4])}), "too large"),
    "shape of 0 x 2^60": (header({"a": entry([0, 1 << 60], [0, 0])}), "empty or too large"),
    "negative shape": (header({"a": entry([-1, -4], [0, 16])}, bytes(16)), "not whole numbers"),
    "boolean shape": (header({"a": entry([True], [0, 4])}, bytes(4)), "not whole numbers"),
    "shape with a fraction": (header({"a": entry([1.0], [0, 4])}, bytes(4)), "not whole numbers"),
    "offsets backwards": (header({"a": entry([1], [4, 0])}, bytes(4)), "where 4 are expected"),
    "offsets beyond the file": (header({"a": entry([2], [0, 8])}, bytes(4)), "describes"),
    "overlap": (header({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)), "overlap"),
    "hole": (header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)), "hole"),
    "trailing bytes": (weights(GOOD + b"\0"), "describes"),
    "truncated": (weights(GOOD[:-1]), "describes"),
    "half": (weights(GOOD[: len(GOOD) // 2]), "describes"),
    "extra field": (header({"a": entry([1], [0, 4]) | {"x": 1}}, bytes(4)), "exactly dtype"),
    "I64": (header({"a": entry([1], [0, 8], "I64")}, bytes(8)), 'dtype "I64"'),
    "F64": (header({"a": entry([1], [0, 8], "F64")}, bytes(8)), 'dtype "F64"'),
    "dtype is a list": (header({"a": entry([1], [0, 8], ["F32"])}, bytes(8)), "dtype"),
    # --- C3: tensors
    "wrong inputs": (tensors({A: torch.zeros(4, 33)}), r"q_proj.lora_A.weight has the shape \[4, 33\].*\[4, 32\]"),
    "wrong outputs": (tensors({B: torch.zeros(31, 4)}), r"\[31, 4\].*\[32, 4\]"),
    "B of another rank": (tensors({B: torch.zeros(32, 3)}), "rank of 4"),
    "three dimensions": (tensors({A: torch.zeros(4, 32, 1)}), "has the shape"),
    "transposed": (tensors({A: torch.zeros(32, 4)}), "has the shape"),
    "A without B": (tensors({B: None}), "no lora_B for it"),
    "B without A": (tensors({A: None}), "no lora_A for it"),
    "layer that is not there": (
        tensors({A.replace("layers.0", "layers.9"): torch.zeros(4, 32)}), "does not have or cannot adapt",
    ),
    "no prefix": (tensors({A: None, A.removeprefix("base_model.model."): torch.zeros(4, 32)}), "not a LoRA matrix.* as base_model.model.MODULE.lora_A.weight is"),
    "both spellings": (tensors({A.replace(".weight", ".default.weight"): torch.zeros(4, 32)}), "same matrix"),
    "DoRA magnitude": (tensors({f"{Q}.lora_magnitude_vector": torch.zeros(32)}), "DoRA"),
    "embedding": (tensors({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}), "embedding"),
    "bias": (tensors({f"{Q}.lora_B.bias": torch.zeros(32)}), "biases"),
    "saved module": (tensors({"base_model.model.lm_head.modules_to_save.weight": torch.zeros(1)}), "fully trained"),
    "base weight": (tensors({f"{Q}.base_layer.weight": torch.zeros(1)}), "is a base weight"),
    "unknown tensor": (tensors({"optimizer.state": torch.zeros(1)}), "not a LoRA matrix"),
    # --- L19: values
    "NaN": (tensors(filled(A, float("nan"))), "q_proj.lora_A.weight holds the value nan"),
    "infinity": (tensors(filled(B, float("inf"))), "q_proj.lora_B.weight holds the value -?inf"),
    "minus infinity in float16": (tensors(filled(B, float("-inf"), torch.float16)), "the value inf"),
    "NaN in bfloat16": (tensors(filled(B, float("nan"), torch.bfloat16)), "holds the value nan"),
    "1e38": (tensors(filled(A, 1e38)), "the value 1e.38"),
    "-1e38 in bfloat16": (tensors(filled(A, -1e38, torch.bfloat16)), "the value 1e|9.9"),
    # --- C4: pickles, links and things that are not files
    "only a pickle": (special(WEIGHTS, lambda p: p.with_name("adapter_model.bin").write_bytes(b"\x80")), "a pickle"),
    "linked directory": (link_directory, "symbolic link"),
    "linked weights": (special(WEIGHTS, lambda p: p.symlink_to(elsewhere(p.parent) / WEIGHTS)), "regular file"),
    "linked config": (special(CONFIG, lambda p: p.symlink_to("/proc/self/environ")), "not a regular file"),
    "link to nothing": (special(CONFIG, lambda p: p.symlink_to("nothing")), "not a regular file"),
    "hard-linked weights": (special(WEIGHTS, lambda p: p.hardlink_to(elsewhere(p.parent) / WEIGHTS)), "2 hard links"),
    "hard-linked config": (special(CONFIG, lambda p: p.hardlink_to(elsewhere(p.parent) / CONFIG)), "2 hard links"),
    "FIFO config": (special(CONFIG, os.mkfifo), "not a regular file"),
    "FIFO weights": (special(WEIGHTS, os.mkfifo), "not a regular file"),
    "device": (special(WEIGHTS, device), "not a regular file"),
    "socket": (special(WEIGHTS, unix_socket), "not a regular file"),
    "directory for a file": (special(WEIGHTS, Path.mkdir), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path) -> None:
    spoil, phrase = CASES[name]
    lib = build.library(tmp_path)
    (tmp_path / "root/t").mkdir()
    spoil(tmp_path / "root/t/a")
    opened.clear()
    before = time.thread_time()
    with pytest.raises(InvalidAdapterError, match=phrase) as raised:
        lib.stage(build.fetch(lib, "t/a"))
    # Of the processor, whatever else it does: 0.05 s, except for one expression of 0.2 s.
    assert time.thread_time() - before < 1
    tracemalloc.start()  # in a second run: tracing is slow
    with pytest.raises(InvalidAdapterError, match=phrase):
        lib.stage(build.fetch(lib, "t/a"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert len(str(raised.value)) < 500 and str(tmp_path) not in str(raised.value)
    assert str(raised.value).isascii() and str(raised.value).isprintable()  # it may be logged, as one line
    assert lib.staged.bytes_held == 0
    foreign = [
        event
        for event in opened
        if str(tmp_path) not in event and CONFIG not in event and WEIGHTS not in event
    ]
    assert [event for event in foreign if not event.startswith("import")] == []


IDS = [
    "", "/", "/etc", "/proc/self/fd/3", "~root", ".", "..", "../t/a", "t/../../x", "t/../t/a", "t/./a", "t//a", "/t/a",
    "t/a/", "%2e%2e/x", "..%2fx", "..\\x", "t\\a", "a\0b", "t/a\0", "t/a.", "t/a ", " t/a", "t/..a/..",
    "t\u2215a", "t\uff0fa", "\u2024\u2024/x",
    "t/a\n", "t/a\r\nX: 1", "\u00e9", "a" * 513, "a/" * 40 + "a", "t/" + "a" * 300,
    ".git", "t/.hidden", "$HOME", "t/*", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("adapter_id", IDS)
def test_ids(adapter_id: str, tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/t/a", build.config(), GOOD)
    build.write(tmp_path / "x", build.config(), GOOD)
    opened.clear()
    with pytest.raises(InvalidAdapterError, match="adapter id") as raised:
        build.fetch(lib, adapter_id)
    assert [event for event in opened if event.startswith("open")] == []
    assert str(raised.value).isascii() and str(raised.value).isprintable() and len(str(raised.value)) < 300


def test_an_id_that_is_not_there(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/t/a", build.config(), GOOD)
    for adapter_id in ("b", "t/b", "t/a/b", "T/a"):
        with pytest.raises(NotFoundError, match="was not found"):
            build.fetch(lib, adapter_id)


def test_without_openat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet_server.adapters.roots._openat2", lambda root_fd, path: None)
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/t/a", build.config(), GOOD)
    build.write(tmp_path / "outside/a", build.config(), GOOD)
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    before = len(os.listdir("/proc/self/fd"))
    build.fetch(lib, "t/a")
    with pytest.raises(NotFoundError):
        build.fetch(lib, "t/b")
    with pytest.raises(InvalidAdapterError, match="symbolic link"):
        build.fetch(lib, "link/a")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_turns_into_a_link(tmp_path: Path) -> None:
    """Swapped back and forth while it is fetched, the answer is the inside or a refusal, and never the
    outside.
    """
    lib = build.library(tmp_path)
    inside = build.write(tmp_path / "root/t/a", build.config(), GOOD)
    build.write(tmp_path / "out/a", build.config(lora_alpha=666), GOOD)
    good = build.fetch(lib, "t/a")
    stop = threading.Event()

    def swap() -> None:
        aside = tmp_path / "aside"
        while not stop.is_set():
            inside.parent.rename(aside)
            inside.parent.symlink_to(tmp_path / "out")
            inside.parent.unlink()
            aside.rename(inside.parent)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        answers = set()
        for _ in range(300):
            try:
                answers.add(build.fetch(lib, "t/a"))
            except LorikeetError as error:
                answers.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert answers <= {good, "InvalidAdapterError", "NotFoundError", "SourceUnavailableError"}


def test_what_lies_beside_the_two_files_is_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    beside = {
        "adapter_model.bin": pickle, "adapter_model.pt": pickle, "pytorch_model.bin": pickle,
        "training_args.bin": pickle,
        "modeling_evil.py": f"open({str(canary)!r}, 'w')".encode(), "__init__.py": b"raise SystemExit",
        "config.json": json.dumps({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}).encode(),
        "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}).encode(),
    }  # fmt: skip
    lib = build.library(tmp_path)
    directory = build.write(tmp_path / "root/a", build.config(), GOOD)
    for name, data in beside.items():
        (directory / name).write_bytes(data)
    opened.clear()
    lib.stage(build.fetch(lib, "a"))
    assert not canary.exists()
    names = {event.rstrip("'").rpartition("/")[2].rpartition("'")[2] for event in opened}
    assert {CONFIG, WEIGHTS} <= names
    assert not names & {*beside, "modeling_evil", "evil"}


def test_bit_flips(tmp_path: Path) -> None:
    """Whichever bit of the header is flipped, the answer is a typed error, or an adapter whose digest says
    so.
    """
    lib = build.library(tmp_path)
    small = build.safetensors({name: value for name, value in build.tensors().items() if "q_proj" in name})
    options = build.config(target_modules=["q_proj"])
    length = 8 + struct.unpack("<Q", small[:8])[0]
    digests = set()
    for position in range(0, length, 3):
        data = bytearray(small)
        data[position] ^= 1 << (position % 8)
        build.write(tmp_path / "root/a", options, bytes(data))
        try:
            digests.add(lib.stage(build.fetch(lib, "a")).digest)
        except InvalidAdapterError:
            continue
    assert len(digests) < 40  # blanks, metadata: what a header may hold and still mean the same


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    data = json.dumps(build.config(base_model_name_or_path="/\U0001f600", auto_mapping="\\ud800")).encode()
    assert b"\\ud83d\\ude00" in data
    config_bytes(data)(tmp_path / "root/a")
    lib = build.library(tmp_path)
    lib.stage(build.fetch(lib, "a"))


def test_denormal_values_are_values(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    tensors({A: torch.full((4, 32), 1e-40)})(tmp_path / "root/a")
    found = build.matrices(lib.stage(build.fetch(lib, "a")))
    assert found["model.layers.0.self_attn.q_proj"].a[0, 0].item() == pytest.approx(1e-40)
