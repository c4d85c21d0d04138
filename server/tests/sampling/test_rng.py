"""Uniform numbers from a seed and a position."""

import numpy as np

from lorikeet_server.sampling.rng import uniforms


def test_uniforms() -> None:
    seeds = np.repeat(np.arange(100, dtype=np.uint64), 1000)
    positions = np.tile(np.arange(1000), 100)
    values = uniforms(seeds, positions)
    assert values.min() >= 0 and values.max() < 1
    assert len(np.unique(values)) == len(values)
    assert abs(values.mean() - 0.5) < 0.005
    assert np.abs(np.histogram(values, 20, (0, 1))[0] / len(values) - 0.05).max() < 0.003
    grid = values.reshape(100, 1000) - 0.5
    # Neither neighbouring positions nor neighbouring seeds move together.
    assert abs((grid[:, 1:] * grid[:, :-1]).mean()) < 1e-3 and abs((grid[1:] * grid[:-1]).mean()) < 1e-3
    largest = np.array([2**64 - 1], np.uint64)
    assert 0 <= float(uniforms(largest, np.array([2**31]))[0]) < 1
