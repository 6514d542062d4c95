"""What the report calls things: the patches, the metrics and the tests in plain words."""

PATCH_WORDS = {
    "full": ("full component", "the whole activation comes from the source"),
    "subspace": ("subspace V", "only the part along the subspace does: the patch under audit"),
    "row": ("unit row part", "the same with the disconnected part cut off"),
    "null": ("unit null part", "the same with only the disconnected part"),
    "read_row": ("read row → write V", "how far to go is read from the connected part"),
    "read_null": ("read null → write V", "how far to go is read from the disconnected part"),
    "random": ("random direction", "a subspace of the same size, drawn at random"),
    "reversed": ("reversed pairs", "the base patched into the source"),
}

METRIC_WORDS = {
    "nats": ("change, nats", "mean change of the logit difference"),
    "fldd": ("FLDD", "0 no change, 1 gone, 2 reversed"),
    "iia": ("IIA", "over the whole vocabulary"),
    "iia_pair": ("IIA of two", "over the two answers"),
}

TEST_WORDS = {
    "full_component": (
        "Does the whole component do what its part does?",
        "effect of full ÷ effect of subspace",
    ),
    "row_effect": (
        "Does the effect survive without the disconnected part?",
        "effect of unit row ÷ effect of subspace",
    ),
    "null_effect": (
        "Does the disconnected part alone do nothing, as it must?",
        "effect of unit null ÷ effect of subspace",
    ),
    "read_source": (
        "Which part senses the feature?",
        "effect of read null → write V ÷ effect of subspace",
    ),
    "amplification": (
        "Is the connected part pushed beyond what nature does along it?",
        "written change ÷ natural change",
    ),
    "dormancy": (
        "Does the connected part vary with the feature in natural data?",
        "AUROC of the row part",
    ),
    "covariation": (
        "Does what is written naturally follow what is read?",
        "written ÷ read, at equal z",
    ),
    "support": (
        "Is the effect carried by what varies in nature?",
        "effect of the on-support part ÷ effect of subspace",
    ),
    "natural": (
        "How much of the effect would nature have made?",
        "effect of the natural change ÷ effect of subspace",
    ),
    "beyond": (
        "How much is left when the natural change is taken out?",
        "effect of the rest of the write ÷ effect of subspace",
    ),
    "acting": (
        "How much remains when only what acts is read?",
        "effect of reading where the answer reacts ÷ effect of subspace",
    ),
    "comovement": (
        "Does nature move along what is written?",
        "natural change ÷ written change, where the answer reacts",
    ),
    "separation": ("Does the subspace carry the feature at all?", "held-out AUROC"),
    "natural_range": (
        "Does the patched activation land where natural ones do?",
        "share inside the natural 99 %",
    ),
    "hidden_pathway": (
        "Does the effect need values downstream that nature does not show?",
        "effect left with the next MLPs held in their natural range",
    ),
    "off_manifold": (
        "How far is the patched activation from natural ones?",
        "distance ÷ that of natural held-out points",
    ),
    "chance": ("Is it beyond what a random subspace does?", "p-value; control: natural draws"),
    "path": ("Through which heads does it act?", "effect left with the top readers frozen"),
    "gradient_agreement": (
        "Would the model's own gradient choose it?",
        "absolute cosine with the gradient",
    ),
    "generalisation": (
        "Does it still work on templates it was not fitted on?",
        "effect on new templates ÷ effect on known ones",
    ),
    "stability": (
        "Would another seed, or the other half of the data, find the same?",
        "mean squared cosine of the principal angles, over three halvings",
    ),
    "shuffled_labels": (
        "What does the method find where there is nothing to find?",
        "effect of fits to shuffled labels ÷ effect of subspace",
    ),
    "vacuity": (
        "Does the method find the same in a model that knows nothing?",
        "pairs turned in a copy with random matrices ÷ here",
    ),
    "selectivity": (
        "What else does it move?",
        "KL beside the answers ÷ that of the full component",
    ),
    "unrelated_text": (
        "Does it move text that the task has nothing to do with?",
        "KL on other text ÷ that of the full component",
    ),
}

AXIS_WORDS = {
    "faithful": "faithful",
    "illusory": "illusory",
    "idle": "does nothing",
    "unjudged": "does too little to say",
}
