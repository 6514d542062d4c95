"""Chats as the text that a model reads: by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import TaskError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], where: str
) -> str:
    """The text of a chat of (role, content), up to where the assistant is to speak. Of a chat that
    ends with the assistant's words it ends with these, and the model goes on with them.

    The special tokens are in the text: it is tokenised without adding any.

    >>> chat_text(lens.tokenizer, [("user", "Who wrote Emma?")], "here")

    Raises `TaskError` where the tokenizer has no chat template or its template refuses the chat.
    """
    if not tokenizer.chat_template:
        raise TaskError(
            f"{where}: the tokenizer of this model has no chat template: write the prompt as text"
        )
    begun = messages[-1][0] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )
    except Exception as error:
        raise TaskError(
            f"{where}: the model's chat template refuses these messages: {first_line(error)}"
        ) from None
    return str(text)
