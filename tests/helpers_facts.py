"""Facts that a tiny random model knows: whatever it says is declared to be right."""

from __future__ import annotations

from dataclasses import replace

import torch

from helpers_tokenizer import ioi_data
from subspacelens import LensModel
from subspacelens.engine.recall import recall
from subspacelens.tasks.facts import Fact, fact_prompt, object_token

TEMPLATES = {
    "gift": ("Then, {} gave the ring to", ("At the park, {} gave the ring to",)),
    "met": ("Then, the two met and {} said to", ("Then, they met and {} said to",)),
}


def known_to(lens: LensModel, each: int = 12) -> tuple[Fact, ...]:
    facts = []
    for relation, (template, paraphrases) in TEMPLATES.items():
        for name in ioi_data()["names"]:
            fact = Fact(
                id=f"{relation}/{name}", relation=relation, subject=name, template=template,
                answer="Mary", new="John",
                paraphrases=tuple(text.format(name) for text in paraphrases),
                neighbours=((template.format("Anna"), "Mary"),),
            )  # fmt: skip
            top = recall(lens, [fact_prompt(lens.tokenizer, fact)], torch.zeros(1, 1).long()).top
            answer = str(lens.tokenizer.decode(top)).strip()
            if answer.isalpha() and object_token(lens.tokenizer, answer) == int(top[0]):
                facts.append(replace(fact, answer=answer))
            if len([f for f in facts if f.relation == relation]) == each:
                break
    return tuple(facts)
