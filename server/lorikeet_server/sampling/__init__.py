"""From logits to tokens, vectorised over rows. Knows slots and positions, nothing of sequences or the
wire."""
