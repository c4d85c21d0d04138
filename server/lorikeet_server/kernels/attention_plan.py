"""The part of a step's attention that a backend works out ahead."""

from typing import Protocol


class AttentionPlan(Protocol):
    """What a backend has prepared for the sequences of a step; only the backend that made it can read it."""
