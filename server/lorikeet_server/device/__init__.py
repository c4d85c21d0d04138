"""How the engine reaches the place where the kernels compute: copies, waiting, capture, memory.

Two kinds behind the interface of `base`, so that nothing above asks which it has. On the host all of it is
free: there are no copies, and whatever was called has been done.
"""
