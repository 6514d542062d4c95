"""Rank-1 edits of MLP weights, what they have to do with patches, and what they leave alone."""

from .second_moments import SecondMoment, second_moments

__all__ = ["SecondMoment", "second_moments"]
