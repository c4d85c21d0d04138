# Only the fused MoE operators import these, and only to call them under tensor parallelism.


def _absent(*args, **kwargs):
    raise NotImplementedError("tensor parallelism is not part of this stand-in")


tensor_model_parallel_all_gather = tensor_model_parallel_all_reduce = _absent
