"""tokenizer.json, made from a GGUF vocabulary, gives the ids that the vocabulary and its merges define."""

from __future__ import annotations

# ruff: noqa: RUF001
import json
from pathlib import Path
from typing import Any

import pytest
from bpe import ReferenceBpe
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lorikeet_server.weights import WeightsError
from lorikeet_server.weights.gguf_config import generation_config
from lorikeet_server.weights.gguf_header import GgufHeader
from lorikeet_server.weights.prepare import prepare
from lorikeet_server.weights.tokenizer import tokenizer_config, tokenizer_json

HARD_CASES = [
    "",
    " ",
    "Hello, world!",
    "  two spaces, then   three    and four\t\ttabs \t mixed",
    "line\nbreaks\n\n\nand\r\nwindows\r\rones \n \n  trailing   ",
    "1234567890 3.14159 2024-05-06 x86_64 1,000,000.00 ½ ² Ⅷ ٣ 七 １２",
    "a1b22c333 4 5  6   7",
    "I'm you're we've they'd it's don't I'LL SHE'D o'clock '' 'tis",
    "naïve café Ünïcödé ÅÄÖ ß ﬁ ĳ",
    "e\u0301 combining, \u200d joiner, \u200b zero width, \u00a0 no-break, \u3000 wide, \u2028 separator",
    "你好，世界！日本語のテスト 한국어 시험",
    "مرحبا بالعالم שלום עולם",
    "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇫🇷 emoji",
    "def f(x):\n    return {k: v for k, v in x.items() if v != 0}  # comment\n\tif True:\n\t\tpass",
    "SELECT * FROM t WHERE a='b' AND c<>\"d\"; -- ok",
    '{"a": [1, 2.5e-10, null, true], "b": "\\u00e9\\n"}',
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|> <|im_end|>x<|im_end|>",
    "<|im_start| > <|im_|> <| im_end |> <|im_end",
    "<repo_name>a/b<file_sep>src/main.rs<filename><reponame>",
    "\x00\x01\x02\x7f\x80\x9f\xad control",
    "\ufffd\ufffe\uffff \U0010ffff \ue000 unassigned and private",
    "Zalgo: Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳",
    "a" * 500,
    " " * 300 + "x" + "\n" * 100,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "https://example.com/path?q=1&r=%20#frag user@example.com C:\\dir\\file.txt",
    "$1.50 €2 £3 ¥4 50% ∑∫√∞≠≤ α→β",
    "!!!???...---___===***((([[[{{{",
]


@pytest.fixture(scope="module")
def header(demo_gguf: Path) -> GgufHeader:
    return GgufHeader.read(demo_gguf)


@pytest.fixture(scope="module")
def tokenizer(header: GgufHeader, demo_gguf: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(header, demo_gguf)))


@pytest.fixture(scope="module")
def reference(header: GgufHeader) -> ReferenceBpe:
    return ReferenceBpe(header.metadata)


@pytest.mark.parametrize("text", HARD_CASES)
def test_ids_are_those_of_the_merges(tokenizer: Tokenizer, reference: ReferenceBpe, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_ids_of_random_text_are_those_of_the_merges(tokenizer: Tokenizer, reference: ReferenceBpe) -> None:
    words = st.sampled_from([*" \n\t019aZ.'<|é🙂你", "<|im_end|>", "  ", " the", "'s", "ing", "\r\n", "٣"])
    texts = st.one_of(st.text(max_size=40), st.lists(words, max_size=20).map("".join))

    @settings(max_examples=500, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        # Lone surrogates have no UTF-8 form, so no request can carry them.
        text = text.encode("utf-8", "ignore").decode()
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text)
        if reference.has_every_byte_of(text):
            assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_every_token_keeps_its_id(tokenizer: Tokenizer, header: GgufHeader) -> None:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert tokenizer.get_vocab_size() == len(tokens)
    assert [tokenizer.id_to_token(index) for index in range(len(tokens))] == tokens


def test_special_tokens_are_skipped_when_decoding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids
    assert tokenizer.decode(ids) == "user\nHi"


def test_transformers_reads_the_directory(demo_gguf: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(prepare(str(demo_gguf), None, tmp_path).tokenizer_path)
    for text in HARD_CASES:
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    turn = [{"role": "user", "content": "Hi"}]
    assert loaded.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )


def test_generation_ends_at_every_end_token(write_gguf: Any) -> None:
    def ends(name: str = "t9", **ids: int) -> Any:
        tokens = {"tokenizer.ggml.tokens": ["<|end|>", name, *(f"t{index}" for index in range(255))]}
        given = {f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()}
        return generation_config(GgufHeader.read(write_gguf(metadata=tokens | given)))["eos_token_id"]

    assert ends(eos=4) == 4
    assert ends(eos=4, eot=7) == [4, 7]
    # Older files of Llama 3 say where a text ends, and not where a turn does.
    assert ends("<|eot_id|>", eos=4) == [1, 4]
    assert ends("<|im_end|>", eos=1) == 1
    assert ends("<|eot_id|>", eos=4, eot=7) == [4, 7]


def test_a_beginning_token_is_added_where_the_model_wants_it(write_gguf: Any) -> None:
    path = write_gguf(metadata={"tokenizer.ggml.bos_token_id": 0})
    header = GgufHeader.read(path)
    for wanted, ids in ((True, [0]), (False, []), (None, [])):
        header.metadata.update({"tokenizer.ggml.add_bos_token": wanted, "tokenizer.ggml.merges": []})
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(header, path)))
        assert tokenizer.encode("").ids == ids
        assert tokenizer.encode("", add_special_tokens=False).ids == []
    assert tokenizer_config(header)["bos_token"] == "<|end|>"


@pytest.mark.parametrize(("said", "ids"), [({}, [0]), ({"tokenizer.ggml.add_bos_token": False}, [])])
def test_llama_3_begins_its_texts_unless_it_says_otherwise(
    write_gguf: Any, said: dict[str, bool], ids: list[int]
) -> None:
    path = write_gguf(metadata={"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 0})
    header = GgufHeader.read(path)
    header.metadata.update({"tokenizer.ggml.merges": [], **said})
    assert Tokenizer.from_str(json.dumps(tokenizer_json(header, path))).encode("").ids == ids
    assert tokenizer_config(header)["add_bos_token"] is bool(ids)


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.ggml.model": "llama"},
        {"tokenizer.ggml.pre": "made-up"},
        {"tokenizer.ggml.pre": None},
        {"tokenizer.ggml.tokens": None, "tokenizer.ggml.token_type": None},
    ],
)
def test_an_unknown_vocabulary_is_refused(write_gguf: Any, metadata: dict[str, Any]) -> None:
    path = write_gguf(metadata=metadata)
    with pytest.raises(WeightsError, match=r"tokenizer\.json beside it"):
        tokenizer_json(GgufHeader.read(path), path)
