"""The one error of this package: a model that cannot be read."""

from lorikeet_server.errors import ModelError


class WeightsError(ModelError):
    """A model, tokenizer or cache that cannot be used.

    The message is one line for the operator: what is wrong, with which path, and what to do about it.
    """
