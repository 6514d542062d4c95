"""The two sites of the main job on the embedded real model."""

from __future__ import annotations

from subspacelens import Site

ILLUSORY, FAITHFUL = Site.parse("L18.mlp_act@S2"), Site.parse("L17.resid_post@S2")
