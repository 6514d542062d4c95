# %% [markdown]
# # Find
#
# You have pairs, and no idea where in the model to look. `find` answers with the sites at which
# the feature lives by which base and source differ, with a subspace at each that an audit bears
# out, and with the sites at which a search would have fooled you. Here it is asked about tiny
# models that were trained to keep a variable at a known place, so that every answer can be held
# against the truth. Of SmolLM2 the same call takes minutes; what it finds there stands in
# [find](../find.md).

# %%
import subspacelens as sl
from subspacelens.bench.truth import load_trained, parity_task

trained = load_trained("head")
lens, task = trained.lens, parity_task(192, 192)
print(lens.map)
print("base:  ", task.train[0].base.text)
print("source:", task.train[0].source.text)
print("the variable was trained to live at", trained.site)

# %% [markdown]
# The prompts are two names (`n`), three digits (`d`) and two marks. The variable z is the parity of
# the first two digits taken modulo two: it says which of the two names is the answer. Base and
# source differ in z. The labels `B`, `SEP` and `END` are the second digit and the two marks.
#
# ## Ask
#
# All labels are searched at which base and source may differ, in the residual stream, the MLPs, the
# heads and the attentions. `labels=` and `streams=` keep a search to some of them.

# %%
found = sl.find(lens, task, budget="fast", directory="runs/find")
print(found)

# %% [markdown]
# ## What it looked at
#
# A *candidate* is a site whose whole component does much, so that the feature can be there. A
# *trap* is one whose whole component does little, and where distributed alignment search (DAS) is
# predicted to do much. At both a subspace is fitted and audited on pairs that nothing else has
# seen. FLDD is 1 − mean patched / mean clean logit difference.

# %%
for place in found.record.places:
    part, whole = place.effect.fldd, place.whole.fldd
    print(f"{place.site:20} {place.role:10} k = {place.dim}  {place.label}")
    print(f"{'':20} the subspace {part.value:.2f}, the whole component {whole.value:.2f}")
    print(f"{'':20} {place.reasons[0]}")

# %% [markdown]
# Is it the channel that z was trained into? At the trained site the two can be compared, by
# the squared cosine between them:


# %%
def told(trained, found):
    for place in found.record.places:
        if place.site == str(trained.site):
            ours = found.subspaces[place.site].basis
            cosine = float((trained.basis.T @ ours).square().sum()) / ours.shape[1]
            print(f"at {place.site}: {place.label}, mean cos² with the truth {cosine:.2f}")


told(trained, found)

# %% [markdown]
# ## Who writes it, and who reads it
#
# What stands in the residual stream is a sum, so what was found there can be followed back to the
# components that wrote it. `effect` is the share of the subspace's effect that a writer's own
# change along it has alone; `share` of a reader is how much of the effect goes through it, by
# gradient times change.

# %%
for place in found.record.found:
    print(place.site)
    for writer in place.writers[:4]:
        print(f"  written by {writer.name:14} effect {writer.effect:5.2f}")
    for reader in place.readers[:4]:
        print(f"  read by    {reader.name:14} share  {reader.share:5.2f}")

# %% [markdown]
# ## Use it
#
# The best subspace lies in the folder of the search, and patches as it is. With the folder another
# session goes on from here.

# %%
effect = sl.load_subspace("runs/find", lens).patch(task)
print(f"FLDD {effect.fldd.value:.2f} [{effect.fldd.low:.2f}, {effect.fldd.high:.2f}]")
for example in effect.examples(2):
    print(example.base)
    print("  unpatched", example.before[:3], " patched", example.after[:3])

# %% [markdown]
# Everything is kept under its identity: model, pairs, code and settings. The same call again
# computes next to nothing, and one that was stopped goes on.

# %%
again = sl.find(lens, task, budget="fast", directory="runs/find")
print(f"{found.record.cpu_seconds:.0f} seconds, again {again.record.cpu_seconds:.0f}")
print(str(again) == str(found))

# %% [markdown]
# The page of the search shows the model with what was found in it; a start page lists it beside
# the audits.

# %%
sl.write_pages("runs/find") + sl.write_pages("runs")

# %% [markdown]
# ## Where it is harder
#
# In the other models z lives inside an MLP, in a plane of the stream, and in a direction of it.

# %%
for name in ("mlp", "plane", "stream"):
    other = load_trained(name)
    answer = sl.find(other.lens, task, budget="fast")
    print(f"{name}: the variable was trained to live at {other.site}")
    print(answer)
    told(other, answer)

# %% [markdown]
# Compare each answer with the place above it. A variable is on its way before it arrives, and goes
# on behind it, so that a site beside the trained one may be named, or the trained one left
# *undetermined*. `subspacelens bench find` measures it.
#
# On the command line, for pairs and a model of yours:
#
# ```
# subspacelens find --model ./my-model --task pairs.jsonl --budget fast
# subspacelens find --task pairs.jsonl --label NOUN --stream resid_post --stream mlp_act
# ```
#
# How candidates and traps are chosen, what `budget` means, and how far to trust an answer:
# [find](../find.md).
