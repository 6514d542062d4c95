"""From pairs to a subspace that one can rely on, or to why there is none."""
