# %% [markdown]
# # Your pairs
#
# You have a question about a model: where does it keep whether the subject is one or many? This
# notebook writes pairs of prompts that differ in that alone, looks at them with the model's eyes,
# asks where to look, and audits what a search finds at two of these places.

# %%
import json
from pathlib import Path

import subspacelens as sl

# %% [markdown]
# ## Write them down
#
# A pair has a *base*, in which an activation is replaced, and a *source*, from which it is taken.
# The `answer` is right after the base; the `target` is expected once the number comes from the
# source. A label, here `NOUN`, says at which token a patch may be; `END`, the last one, is always
# there. Half of the pairs go from one to many, half back. The beginnings differ, so that what
# stands at a noun is not the same in two templates.

# %%
NOUNS = """author river farmer teacher book doctor car letter tree door garden window
student artist village bridge soldier horse island lawyer machine engine actor singer""".split()
TEMPLATES = {
    "near": "The {} near the old house",
    "think": "I think that the {} from the city",
    "say": "They say that the {} in the story",
    "however": "However, the {} behind the hill",
}


def pair(name, text, first, second, answer, target):
    base, source = text.format(first), text.format(second)
    return {
        "base": base,
        "source": source,
        "answer": answer,
        "target": target,
        "tokens": {"NOUN": {"base": first, "source": second}},
        "template": name,
    }


pairs = []
for name, text in TEMPLATES.items():
    for noun in NOUNS:
        pairs.append(pair(name, text, noun, f"{noun}s", " is", " are"))
        pairs.append(pair(name, text, f"{noun}s", noun, " are", " is"))
Path("pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
pairs[0]

# %% [markdown]
# ## See what the model sees
#
# The command below shows the first pair token by token, and what may be wrong with the file. All
# answers and targets are but two, so these two are the classes z that several tests need.

# %% language="bash"
# subspacelens check pairs.jsonl --show 1

# %% [markdown]
# ## Where to look
#
# Patch whole components first: where one does nothing, no part of it can be how the model does it.
# FLDD is 1 − mean patched / mean clean logit difference: 0 means no effect, 1 that the difference
# is gone, 2 that it is reversed.

# %%
lens = sl.load_model("smollm2")
task = sl.pairs_task(lens.tokenizer, "pairs.jsonl")
print(task)
streams, labels = ["resid_post", "mlp_act"], ["NOUN", "END"]
whole = sl.patching_map(lens, task.test, streams, labels, limit=24)
for label in labels:
    for layer in range(0, 30, 5):
        found = whole.at(f"L{layer}.resid_post@{label}")
        print(f"{found.site!s:22} {found.fldd:.2f}")

# %% [markdown]
# Read it as a path: at which layers is the number still at the noun, and from which on has it
# arrived at the last token? The instant map adds, from one forward and one backward pass, what a
# search would find at each place and how much of that would be illusion. Here are the MLPs in which
# it would find most.

# %%
instant = sl.instant_map(lens, task.train, ["mlp_act"], labels, limit=24)
for each in instant.strongest(6):
    print(
        f"{each.site!s:18} whole {each.whole_fldd:5.2f}   DAS would find {each.das_fldd:.2f}"
        f"   of that illusion {each.illusion:.0%}"
    )

# %% [markdown]
# ## Fit and audit
#
# At two places, one in the stream and one inside an MLP, distributed alignment search (DAS) finds
# a direction on the training pairs, and the audit judges it on others. `budget="fast"` runs what
# the verdict rests on; leave it out for all the evidence.

# %%
sites = ["L10.resid_post@NOUN", "L26.mlp_act@END"]
captures = sl.capture_task(lens, task, sites)
for site in sites:
    subspace = sl.das(lens, captures.train, sl.Site.parse(site))
    result = sl.audit(lens, captures, subspace, budget="fast")
    print(result)
    for reason in result.record.verdict.reasons:
        print("  -", reason)
    result.save("runs/agreement")
sl.write_report("runs/agreement")

# %% [markdown]
# The page holds the verdicts, the reasons and a dozen pairs in words; how to read one is the
# subject of [another notebook](4_read_an_audit.py). The same in one command:
#
# ```
# subspacelens audit --task pairs.jsonl --site L10.resid_post@NOUN --site L26.mlp_act@END
# ```
#
# What else a file of pairs can say (chats, groups, several accepted answers, tables and
# benchmarks) is in [your pairs](../tasks.md) and [answers](../answers.md).
