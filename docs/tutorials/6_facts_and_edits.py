# %% [markdown]
# # Facts and edits
#
# Three ways to make a model say that the capital of one country is that of another: put the whole
# MLP's activation from the other prompt, a single direction of it, or edit its weights. Do they
# agree about where the fact is?

# %%
import torch

import subspacelens as sl
from subspacelens.edit import RomeRecipe, edited, rome, rome_prompts, second_moments
from subspacelens.engine.text import embedded_corpus
from subspacelens.fit.per_pair import per_pair
from subspacelens.tasks.facts import fact_pairs, pair_set

lens = sl.load_model("smollm2")
capitals = [each for each in sl.embedded_facts() if each.relation == "country-capital"][:80]
known = sl.known_facts(lens, capitals)
print(len(known), "known of", len(capitals))
print(*[f"{each.text} {each.answer}" for each in known[:3]], sep="\n")

# %% [markdown]
# ## One direction a pair, and the whole MLP
#
# Twelve pairs of known facts. For each pair and layer, the best direction at the subject's last
# token is sought, and patched; beside it the whole MLP. A pair is flipped if the source's capital
# becomes the likeliest word of all.

# %%
drawn = fact_pairs(lens.tokenizer, known, per_relation=12)
pairs = pair_set(lens.tokenizer, drawn)
layers = (3, 9, 15, 21)
sites = [f"L{layer}.mlp_act@subject" for layer in layers]
captured = sl.capture(lens, pairs, sites, shifted=True)
print("layer  whole MLP  one direction")
for layer, site in zip(layers, sites, strict=True):
    v = per_pair(lens, captured, site).directions
    changes = {"whole": None, "along v": sl.patching.PairwisePatch(v, v)}
    effects = sl.patch(lens, captured, site, changes, shifted=True)
    whole, along = (effect.iia.value for effect in effects.values())
    print(f"{layer:5}  {whole:9.2f}  {along:13.2f}")

# %% [markdown]
# A direction that flips facts where its whole component does nothing is the illusion of the
# paper's fifth section. What the same direction does to other words for the same prompts, and to
# other pairs, is in the [study of facts](../facts.md).
#
# ## An edit
#
# ROME writes a new object into one layer's weights. It needs the second moments of what the layer
# reads, here over a small text. `edited` puts the edit in for as long as the `with` lasts, and
# every bit is as before afterwards.

# %%
fact = next(each for each in capitals if each.subject == "France")
layer = 9
moment = second_moments(lens, [layer], embedded_corpus(lens, tokens=2_000))[layer]
prompts = rome_prompts(lens, [fact], [layer], RomeRecipe())
(edit,) = rome(prompts, layer, moment)


def says(text):
    ids = lens.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = lens.model(**ids).logits[0, -1]
    return lens.tokenizer.decode(logits.argmax())


asked = [fact.text, *fact.paraphrases, *(text for text, _ in fact.neighbours[:3])]
before = [says(text) for text in asked]
with edited(lens, edit):
    after = [says(text) for text in asked]
print(f"{fact.subject}: {fact.answer} is to become {fact.new}, at layer {layer}")
for text, old, new in zip(asked, before, after, strict=True):
    print(f"{text!r}: {old!r}, edited {new!r}")
assert [says(text) for text in asked] == before

# %% [markdown]
# Shown is the likeliest next token, of a longer name the first. The last lines are the neighbours:
# prompts about other countries, which an edit must leave alone; see whether this one does. That an
# edit works at a layer does not say that the fact is stored there; the [study of
# edits](../facts.md#edits) has the numbers.
