"""Adapters on this machine: from the directory their owner keeps to a device slot, right or refused.

`library` is the entry: fetch (source to store), stage (store to host memory), drop. `slots` applies the
router's moves.
"""
