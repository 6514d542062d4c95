"""Rank-1 edits of MLP weights, what they have to do with patches, and what they leave alone."""

from .edit_to_patch import ZeroDirections, ZeroSetter
from .patch_to_edit import edit_from_patch, key_vector, variance
from .rank_one import RankOneEdit, edited, edited_each
from .rome import RomePrompts, RomeRecipe, essence_prompt, rome, rome_prompts
from .second_moments import SecondMoment, second_moments

__all__ = [
    "RankOneEdit",
    "RomePrompts",
    "RomeRecipe",
    "SecondMoment",
    "ZeroDirections",
    "ZeroSetter",
    "edit_from_patch",
    "edited",
    "edited_each",
    "essence_prompt",
    "key_vector",
    "rome",
    "rome_prompts",
    "second_moments",
    "variance",
]
