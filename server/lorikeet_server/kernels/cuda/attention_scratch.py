"""The memory in which FlashInfer keeps partial results, where it splits the keys of a sequence."""

from lorikeet_server.kernels.attention_shape import AttentionShape

BLOCKS = 2  # of a processor, that the tensor core kernels split keys for
VECTOR_BLOCKS = 16  # the most that may run on a processor, of the kernels without tensor cores
ALIGNMENT = 64
LONG = 1 << 16  # queries of a long prompt


def scratch_bytes(shape: AttentionShape, sequences: int, processors: int) -> int:
    """Enough for any step, and for captured decodes of up to `sequences`, on so many processors.

    FlashInfer raises if its plan needs more. Each part keeps a float32 row of results and a sum for every
    query of its tile. A plan of prompts has as many parts as fill the device, or does not split; one that is
    captured has room for as many as fill the device or one for each tile there can be (`scheduler.cuh` of
    0.6.7).
    """
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    group, filling = heads // kv_heads, BLOCKS * processors // kv_heads
    tile = query_tile(group, dim)
    tiles = -(-sequences * group // tile) + sequences - 1
    rows = max(
        filling * query_tile(LONG, dim),
        max(filling, tiles) * tile,
        VECTOR_BLOCKS * processors // kv_heads,
        sequences,
    )
    return rows * heads * (dim + 1) * 4 + ALIGNMENT


def query_tile(queries: int, dim: int) -> int:
    """Queries that are computed together, of a sequence that has so many for each key head."""
    if queries > 64 and dim < 256:
        return 128
    return 64 if queries > 16 else 16
