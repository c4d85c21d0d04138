# The original compiles a CUDA kernel through TVM. This one computes the same tables with torch operators,
# rows of a bucket in their order. It waits for the device, so it cannot be captured in a graph.
import torch


def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    expert_ids,
    num_tokens_post_pad,
    cumsum_buffer,
    pad_sorted_token_ids=False,
    *,
    write_inactive_prefix_count=False,
    map_invalid_experts_to_sentinel=False,
    pad_expert_ids=False,
):
    buckets = topk_ids.reshape(-1).long() + 1
    if map_invalid_experts_to_sentinel:
        buckets = torch.where((buckets < 1) | (buckets >= num_experts), 0, buckets)
    counts = torch.bincount(buckets, minlength=num_experts)
    padded = (counts + block_size - 1) // block_size * block_size
    ends = padded.cumsum(0)
    order = buckets.argsort(stable=True)
    owners = buckets[order]
    within = torch.arange(buckets.numel(), device=buckets.device) - (counts.cumsum(0) - counts)[owners]
    if pad_sorted_token_ids:
        sorted_token_ids.fill_(buckets.numel())
    sorted_token_ids[(ends - padded)[owners] + within] = order.int()
    starts = torch.arange(expert_ids.numel(), device=buckets.device) * block_size
    unused = torch.full_like(expert_ids, -1) if pad_expert_ids else expert_ids
    found = torch.searchsorted(ends, starts, right=True).int() - 1
    expert_ids.copy_(torch.where(starts < ends[-1], found, unused))
    num_tokens_post_pad[0] = ends[-1]
    if write_inactive_prefix_count:
        num_tokens_post_pad[1] = padded[0] // block_size
    cumsum_buffer[:1] = 0
    cumsum_buffer[1 : num_experts + 1] = ends
