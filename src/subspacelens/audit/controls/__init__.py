"""Spike-in controls: planted channels of known truth at the user's own site, audited blind."""
