# %% [markdown]
# # Find
#
# You have pairs, and no idea where in the model to look. `find` answers with the sites at which
# the feature lives by which base and source differ, with a subspace at each that an audit bears
# out, and with the sites at which a search would have fooled you. Here it is asked about SmolLM2
# and indirect object identification (IOI), and then about tiny models of which it is known where
# the feature is.

# %%
import subspacelens as sl
from subspacelens.bench.truth import load_trained, parity_task

lens = sl.load_model("smollm2")
task = sl.ioi(lens.tokenizer, train=48, test=48, held_out=0)
print("base:  ", task.train[0].base.text)
print("source:", task.train[0].source.text)

# %% [markdown]
# ## Ask
#
# The two prompts differ in the order of the first two names: whether the name that comes twice was
# the first or the second. Without `labels` and `streams` every token is searched at which base and
# source may differ, in the residual stream, the MLPs, the heads and the attentions, which takes
# minutes. This search is kept to the token `S2`, where the name comes again, to the residual stream
# and to the MLPs.

# %%
search = {"labels": ["S2"], "streams": ["resid_post", "mlp_act"], "budget": "fast"}
found = sl.find(lens, task, directory="runs/find", **search)
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
# Where DAS would fool you too, by the prediction alone, without a fit:

# %%
for each in found.record.predicted[:5]:
    print(f"{each.site:16} DAS would do {each.das:.2f}, the whole component {each.whole:.2f}")

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
print("FLDD", effect.fldd)
for example in effect.examples(2):
    print(example.base)
    print("  unpatched", example.before[:3], " patched", example.after[:3])

# %% [markdown]
# Everything is kept under its identity: model, pairs, code and settings. The same call again
# computes next to nothing, and one that was stopped goes on.

# %%
again = sl.find(lens, task, directory="runs/find", **search)
print(f"{found.record.cpu_seconds:.0f} seconds, again {again.record.cpu_seconds:.0f}")
print(str(again) == str(found))

# %% [markdown]
# The page of the search shows the model with what was found in it; a start page lists it beside
# the audits.

# %%
sl.write_pages("runs/find") + sl.write_pages("runs")

# %% [markdown]
# ## Where the answer is known
#
# Does it find what is there? The library brings tiny models that were trained to keep a variable z
# at a known place, in a known channel. Here they are searched everywhere, and the search knows
# nothing of the place.

# %%
for name in ("head", "mlp"):
    trained = load_trained(name)
    answer = sl.find(trained.lens, parity_task(192, 192), budget="fast")
    print(f"{name}: z was trained to live at {trained.site}")
    print(" ", answer)
    for place in answer.record.places:
        if place.site == str(trained.site):
            ours = answer.subspaces[place.site].basis
            cosine = float((trained.basis.T @ ours).square().sum())
            print(f"  there: {place.label}, squared cosine with the channel {cosine:.2f}")

# %% [markdown]
# Compare each answer with the place above it. The variable is on its way before it arrives, and
# goes on behind it, so that a site next to the trained one may be named, or the trained one left
# *undetermined*. `subspacelens bench find` asks all of these models.
#
# On the command line:
#
# ```
# subspacelens find --task ioi --budget fast
# subspacelens find --task pairs.jsonl --label NOUN --stream resid_post --stream mlp_act
# ```
#
# How candidates and traps are chosen, what `budget` means, and how far to trust an answer:
# [find](../find.md).
