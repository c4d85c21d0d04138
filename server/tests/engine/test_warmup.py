"""What a Warmup allocates, and what Info says of a model."""

import pytest
from shard_driver import BLOCK, make_engine, tiny_model, warmup_request

from lorikeet_server.engine.engine import Engine
from lorikeet_server.errors import ConfigError, NotReadyError
from lorikeet_server.pb import shard_pb2 as pb


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("model")
    tiny_model(path, tie_word_embeddings=True)
    return make_engine(path, path / "store", "cpu")


def test_warmup(engine: Engine) -> None:
    block = BLOCK * engine.kv_shape.bytes_per_token
    assert engine.warmup(warmup_request(kv_bytes=10 * block + 5)).num_blocks == 10
    # Left to the shard: what all slots can use at full length, as long as there is memory.
    assert engine.warmup(warmup_request(kv_bytes=0)).num_blocks == 8 * 16
    assert engine.warmup(warmup_request(adapter_bytes=12345)).adapter_bytes == 12345
    assert engine.warmup(warmup_request()).adapter_bytes > 0
    for wrong, words in (
        ({"kv_bytes": 1}, "1 bytes of KV memory hold no block of 16 tokens of .*; raise --kv-cache-bytes"),
        (
            {"kv_bytes": 1 << 50, "max_sequence_tokens": 512, "max_sequences": 1 << 30},
            "does not give the KV cache its memory .*; lower --kv-cache-bytes",
        ),
        ({"block_size": 0}, "block_size is 0, it must be at least 1"),
        ({"max_sequences": 0}, "max_sequences is 0, it must be at least 1"),
        ({"max_sequence_tokens": 513}, "max_sequence_tokens is 513, the model has 512 positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            engine.warmup(warmup_request(**wrong))
    with pytest.raises(NotReadyError, match="call Warmup first"):
        engine.execute(pb.Step())


def test_info(engine: Engine) -> None:
    info = engine.info()
    assert (info.architecture, info.vocab_size, info.max_position_embeddings) == (
        "LlamaForCausalLM",
        199,
        512,
    )
    assert engine.kv_shape.bytes_per_token == 3 * 2 * 2 * 12 * 4
    assert list(info.lora_targets) == [
        *("down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
