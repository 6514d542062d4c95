# %% [markdown]
# # Read an audit
#
# An audit is a verdict, its reasons, and the evidence behind them. Here two are made, of
# directions that DAS finds at two sites of SmolLM2 on indirect object identification (IOI), and
# read from the top.

# %%
import subspacelens as sl

lens = sl.load_model("smollm2")
task = sl.ioi(lens.tokenizer, train=96, test=64, held_out=32)
sites = ["L18.mlp_act@S2", "L17.resid_post@S2"]
captures = sl.capture_task(lens, task, sites)
audits = {}
for site in sites:
    subspace = sl.das(lens, captures.train, sl.Site.parse(site))
    audits[site] = sl.audit(lens, captures, subspace)
    audits[site].save("runs/ioi")
sl.write_report("runs/ioi")

# %% [markdown]
# ## The verdict and its reasons

# %%
for site, each in audits.items():
    print(f"{site}: {each.label} ({each.record.verdict.code})")
    for reason in each.record.verdict.reasons:
        print("  -", reason)

# %% [markdown]
# ## The effects
#
# Compare `full` with `subspace` first: a part that does far more than its whole does something
# that the model does not do. Then `row` with `subspace`: what is left without what nothing reads.
# (At the second site nothing is disconnected by construction, and the split is a proxy.)

# %%
for site, each in audits.items():
    print(site)
    for name, effect in each.record.effects.items():
        fldd = effect.fldd
        if fldd.value is not None:
            print(f"  {name:10} {fldd.value:5.2f} [{fldd.low:.2f}, {fldd.high:.2f}]")

# %% [markdown]
# ## The evidence
#
# Each test asks one question. A verdict rests on few of them; the others tell where to look next.
# What each measures is in [the audit](../audit.md).

# %%
for site, each in audits.items():
    print(site)
    for name in (
        "full_component",
        "row_effect",
        "covariation",
        "natural",
        "beyond",
        "natural_range",
    ):
        test = each.record.tests.get(name)
        if test is not None and test.value is not None:
            print(f"  {name:15} {test.value:5.2f}  {test.reading}")

# %% [markdown]
# ## In words
#
# What the model says, pair by pair. Look whether pairs far from the others have something in
# common, such as a template.

# %%
audits["L18.mlp_act@S2"].frame().head(3)

# %%
effect = sl.patch(lens, captures, "L18.mlp_act@S2", audits["L18.mlp_act@S2"].subspace)
for example in effect.examples(3):
    print(example.base)
    print(f"  right {example.answer!r}, the source's {example.target!r}")
    print("  unpatched", example.before[:3], " patched", example.after[:3])

# %% [markdown]
# ## Before you quote it
#
# The verdict's assumptions and the strongest objection to it stand beside it. Quote them with it.

# %%
verdict = audits["L17.resid_post@S2"].record.verdict
print(verdict.assumptions)
print(verdict.objection)

# %% [markdown]
# How often the rule is wrong at your own site is measured by planting subspaces of known truth
# there: `subspacelens audit --controls`, or `sl.audit(..., controls=True)`. What no audit can tell
# is in [limits](../limits.md); three audits read at length are in [how to read an
# audit](../reading.md).
