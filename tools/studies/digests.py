"""What the docs say of a study's record, as a few kilobytes of JSON: an estimate is [value, low,
high]."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.stats import spearmanr

from subspacelens.audit.verdict import SMALLEST_FLDD
from subspacelens.core.records import Estimate, read_record
from subspacelens.studies.editing_record import EditingRecord, load_editing_record
from subspacelens.studies.editing_summary import edit_findings, edit_summary, over_layers, unedited
from subspacelens.studies.facts_record import FactsRecord, load_facts_record
from subspacelens.studies.facts_summary import findings, shared_summary, summary
from subspacelens.studies.ioi import IoiRecord
from subspacelens.studies.ioi.data import FRESH, HELD_OUT
from subspacelens.studies.prevalence import Prevalence
from subspacelens.studies.promised import Slopes
from subspacelens.survey.das_sites import DasSite, shares
from subspacelens.survey.illusions import SiteIllusions

DIGITS = 6


def lean(value: Any) -> Any:
    """JSON types, numbers to `DIGITS` digits, an estimate as a list of one or three."""
    if isinstance(value, Estimate):
        ends = (value.value, value.low, value.high)
        return lean(list(ends) if value.low is not None else [value.value])
    if isinstance(value, BaseModel):
        return lean({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(name): lean(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, frozenset, set)):
        return [
            lean(each) for each in (value if isinstance(value, (list, tuple)) else sorted(value))
        ]
    return value


def toy(path: Path) -> dict[str, Any]:
    held = json.loads(path.read_bytes())
    kept = ("table", "span", "component", "promises")
    verdicts = {
        name: [
            {"units": each["units"], "conditions": each["conditions"],
             "label": each["verdict"]["label"], "code": each["verdict"]["code"]}
            for each in both
        ]
        for name, both in held["verdicts"].items()
    }  # fmt: skip
    return {name: held[name] for name in kept} | {"verdicts": verdicts, "made": held["made"]}


def ioi(path: Path) -> dict[str, Any]:
    record = read_record(IoiRecord, path, "record of IOI")
    table = {(row.site, row.patch): row for row in record.table1}
    both = FRESH, HELD_OUT
    rows = []
    for own in (c for c in record.contrasts if c.pairs == FRESH):
        v, read, unread = (
            ("v_MLP", "v_MLP row", "v_MLP null")
            if own.rule == "illusion"
            else ("v_resid", "v_resid along readers", "v_resid null")
        )
        held = next(
            (c for c in record.contrasts if (c.pairs, c.site) == (HELD_OUT, own.site)), None
        )

        def fldd(patch: str, site: str = own.site) -> Estimate | None:
            row = table.get((site, patch))
            return row and row.fldd

        rows.append(
            {
                "site": own.site,
                "rule": own.rule,
                "whole": fldd("full"),
                "v": fldd(v),
                "read": fldd(read),
                "unread": fldd(unread),
                "iia": table[own.site, v].iia,
                "no_op": table[own.site, v].iia_no_op.value,
                "grad": fldd("v_grad"),
                "mean": fldd("v_mean"),
                "shares": {"whole": own.whole, "read": own.read},
                "elsewhere": held and {"whole": held.whole, "read": held.read},
                "met": own.site in record.sites_where(own.rule, *both),
                "sure": own.site in record.sites_where(own.rule, *both, sure=True),
            }
        )
    return {
        "made": record.made,
        "seconds": record.seconds,
        "model": record.model.id,
        "seed": record.seed,
        "pairs": record.table1[0].pairs,
        "clean": record.clean_logit_diff,
        "name_movers": record.circuit.name_movers,
        "rows": rows,
        "writers": [
            (item.site, writer.component, writer.share)
            for item in record.success
            for writer in item.writers
        ],
        "success": {
            item.site: {
                "separation": item.separation,
                "cosines": item.cosines,
                "random_cosine": item.random_cosine,
                "frozen": [(row.what, row.left) for row in item.frozen],
                "leaks": {leak.what: [leak.test.value, leak.chance] for leak in item.leaks},
            }
            for item in record.success
        },
        "dormant": {item.site: [item.in_range, item.in_range_written] for item in record.dormant},
        "controls": [
            {"control": c.control, "site": c.site, "patch": c.patch, "fldd": c.fldd.value,
             "iia": c.iia.value, "nats": c.nats.value}
            for c in record.controls
        ],
        "losses": [row.cosine for row in record.losses],
        "stability": [
            {"site": row.site, "angle": max(row.angles), "seeds": len(row.seeds),
             "random": row.random_low}
            for row in record.stability
        ],
        "selectivity": record.selectivity,
        "verdicts": [
            {"site": v.site, "direction": v.direction, "label": v.label, "score": v.score}
            for v in record.verdicts
        ],
        "promises": {p.site: p for p in record.promises},
        "refined": {p.site: p for p in record.refined},
        "claims": _tally(record),
    }  # fmt: skip


def _tally(record: IoiRecord) -> dict[str, list[int]]:
    """By claim of the paper, at how many sites it agrees, and of how many."""
    counted: dict[str, list[int]] = {}
    for claim in record.claims:
        if claim.agrees is not None:
            agreed, total = counted.get(claim.claim, (0, 0))
            counted[claim.claim] = [agreed + claim.agrees, total + 1]
    return counted


def facts(path: Path) -> dict[str, Any]:
    record: FactsRecord = load_facts_record(path)
    rows = [
        {
            "layer": row.layer,
            "flips": row.flips,
            "beats": row.beats,
            "fraction": row.fraction,
            "null_norm": row.null_norm,
            "cos_null": row.cos_null,
            "random_null_norm": row.random_null_norm,
            "paraphrases": row.paraphrases,
            "others": row.others,
            "residual": row.residual,
            "edit_gap": row.edit_gap,
            "slopes": _slopes(layer.slopes, np.array(record.clean), layer.patches),
        }
        for row, layer in zip(summary(record), record.layers, strict=True)
        if row.stream == "mlp_act"
    ]
    return {
        "made": record.made,
        "seconds": record.seconds,
        "model": record.model.id,
        "facts": record.facts,
        "known": record.known,
        "pairs": len(record.pairs),
        "relations": len({pair.relation for pair in record.pairs}),
        "steps": record.recipe.get("steps"),
        "rows": rows,
        "shared": [
            {"layer": s.layer, "dim": s.dim, "train": s.train, "test": s.test, "full": s.test_full}
            for s in shared_summary(record)
        ],
        "findings": findings(record),
    }


def _slopes(slopes: Slopes | None, clean: np.ndarray, patches) -> dict[str, Any] | None:
    """Medians over pairs of what the theory promises, and of what came, as shares of the clean
    logit difference; and how the two rank the pairs alike."""
    if slopes is None:
        return None
    drops = {name: clean - np.array(patches[name].logit_diff) for name in ("v", "full")}
    return {
        "cosine": np.median(slopes.cosine),
        "best": np.median(slopes.best / clean),
        "whole": np.median(slopes.whole / clean),
        "seen_best": np.median(drops["v"] / clean),
        "seen_whole": np.median(drops["full"] / clean),
        "rank": spearmanr(slopes.best, drops["v"]).statistic,
    }


def editing(path: Path) -> dict[str, Any]:
    record: EditingRecord = load_editing_record(path)
    names = ("layer", "rome", "paraphrase", "neighbour", "neighbour_top", "zero", "zero_row",
             "cos_vb", "ratio", "patch", "full", "trace")  # fmt: skip
    rows = [
        {name: getattr(row, name) for name in names}
        | {
            "cosine": np.median(layer.slopes.cosine) if layer.slopes else None,
            "correlation": row.correlation["trace and rewrite score"],
        }
        for row, layer in zip(edit_summary(record), record.layers, strict=True)
    ]
    return {
        "made": record.made,
        "seconds": record.seconds,
        "model": record.model.id,
        "facts": len(record.pairs),
        "relations": len({pair.relation for pair in record.pairs}),
        "rows": rows,
        "unedited": unedited(record),
        "over_layers": over_layers(record)["trace and rewrite score"],
        "findings": edit_findings(record),
    }


def prevalence(path: Path) -> dict[str, Any]:
    record = read_record(Prevalence, path, "survey")
    it, plain = record.illusions, [site for site in record.das if site.fit == "das"]
    return {
        "made": record.made,
        "seconds": record.seconds,
        "model": it.model.id,
        "labels": it.labels,
        "layers": it.layers,
        "pairs": it.test_pairs,
        "sites": [_built(site) for site in it.sites],
        "weights": {
            "rank": sorted({layer.down.rank for layer in record.weights}),
            "kernel": sorted({layer.down.kernel for layer in record.weights}),
            "inputs": sorted({layer.down.inputs for layer in record.weights}),
            "smallest": [layer.down.singular_values[0] for layer in record.weights],
        },
        "r2": [layer.r2.value for layer in record.distortion],
        "separators": [layer.transfer.held_out.value for layer in record.distortion],
        "random": [
            (each.site, each.weights, each.seeds, each.direction, each.connected, each.whole)
            for each in record.random_mlps
        ],
        "das": [_found(site) for site in plain if site.has_effect],
        "das_shares": {
            name: [share.count, share.total, share.estimate]
            for name, share in (shares(plain) if plain else {}).items()
        },
        "smallest": SMALLEST_FLDD,
        "theory": _against(record),
    }


def _built(site: SiteIllusions) -> dict[str, Any]:
    targets = {
        target: max(
            (illusion for name, illusion in site.illusions.items() if name.endswith(target)),
            key=lambda illusion: illusion.effect.value or 0.0,
        )
        for target in dict.fromkeys(name.partition(" of ")[2] for name in site.illusions)
    }
    return {
        "site": f"L{site.layer}.mlp_act@{site.label}",
        "whole": site.whole.value,
        "works": site.works,
        "sensed": site.sensed,
        "best": [site.best.effect.value, site.best.connected.value],
        "targets": {name: [x.effect, x.connected.value] for name, x in targets.items()},
    }


def _found(site: DasSite) -> dict[str, Any]:
    return {
        "site": f"L{site.layer}.mlp_act@{site.label}",
        "verdict": site.verdict,
        "effect": site.effect.value,
        "connected": site.connected.value,
        "whole": site.whole.value,
        "cos": [site.cos_null, site.cos_row],
        "sees": [site.sees_null, site.sees_row],
    }


def _against(record: Prevalence) -> dict[str, Any] | None:
    """What one pass promised of each MLP against what DAS found there, or, without DAS, against the
    patch of the whole MLP alone."""
    promised = {promise.site: promise for promise in record.promises}
    whole = {f"L{s.layer}.mlp_act@{s.label}": s.whole.value for s in record.illusions.sites}
    if not promised:
        return None
    against: dict[str, Any] = {
        "whole_rank": _rank({site: p.whole for site, p in promised.items()}, whole),
    }
    plain = [site for site in record.das if site.fit == "das"]
    if plain:
        found = {f"L{s.layer}.mlp_act@{s.label}": s for s in plain}
        effects = {site: das.effect.value for site, das in found.items()}
        against["best_rank"] = _rank({site: p.best for site, p in promised.items()}, effects)
        against["sites"] = {site: promised[site] for site, das in found.items() if das.has_effect}
    return against


def _rank(one: dict[str, float | None], other: dict[str, float | None]) -> float:
    both = [(one[site] or 0.0, other[site] or 0.0) for site in one if site in other]
    return float(spearmanr(*zip(*both, strict=True)).statistic)


RECORDS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "toy": ("toy.json", toy),
    "ioi": ("ioi.json", ioi),
    "facts": ("facts.json", facts),
    "editing": ("editing.json", editing),
    "prevalence": ("survey.json", prevalence),
    "prevalence-facts": ("survey.json", prevalence),
}
"""By study, the file of its record in its folder, and what makes a digest of it."""


def digest(name: str, folder: Path) -> bytes:
    """The digest of a study's record in `folder`, as JSON with an entry a line."""
    file, of = RECORDS[name]
    held = lean(of(folder / file))
    if held.get("made") is None:
        raise SystemExit(f"{folder / file} does not say when and where it was made: run it anew")
    lines = [f"{json.dumps(key)}: {_wrapped(value)}" for key, value in held.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _wrapped(value: Any) -> str:
    """One line, or one for each entry of what is long."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) < 100 or not isinstance(value, (dict, list)):
        return text
    if isinstance(value, list):
        return "[\n " + ",\n ".join(json.dumps(x, ensure_ascii=False) for x in value) + "\n]"
    entries = (f"{json.dumps(k)}: {json.dumps(x, ensure_ascii=False)}" for k, x in value.items())
    return "{\n " + ",\n ".join(entries) + "\n}"
