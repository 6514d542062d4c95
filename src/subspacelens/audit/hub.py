"""Subspaces and audits on the Hugging Face hub, each with a card made from its record."""

from __future__ import annotations

from ..core.errors import ResultError
from ..fit.subspace import Subspace
from ..interop.hub import OURS, located, pushed
from .card import PICTURE, audit_card, picture, subspace_card
from .record import load_audit
from .run import AUDIT_FILE, Audit


def push_to_hub(
    thing: Subspace | Audit, repository: str, *, private: bool = False, token: str | None = None
) -> str:
    """Puts a subspace, or an audit with its subspace, into `owner/name` on the hub, with a card
    that says what the record says, and gives the address of the commit.

    An audit that was put there is replaced; putting a subspace alone keeps what else is there.
    `token` is by default the one that `hf auth login` keeps. Raises `ResultError` where the hub
    refuses or cannot be reached.

    >>> sl.push_to_hub(result, "me/s2-position")
    """
    subspace = thing.subspace if isinstance(thing, Audit) else thing
    files = {OURS: subspace.to_bytes()}
    if isinstance(thing, Audit):
        files[AUDIT_FILE] = thing.record.model_dump_json(indent=1, by_alias=True).encode()
        files[PICTURE] = picture(thing.record).encode()
        card = audit_card(subspace, thing.record, repository)
        message = f"Audit of a subspace at {subspace.site}: {thing.label}"
    else:
        card, message = subspace_card(subspace, repository), f"A subspace at {subspace.site}"
    files["README.md"] = card.encode()
    return pushed(repository, files, message=message, private=private, token=token)


def from_hub(repository: str) -> Subspace | Audit:
    """What `push_to_hub` put there: an audit where there is one, else the subspace. A folder in the
    same layout is read too.

    Nothing is said of the model at hand: `Subspace.check` does, and `audit` asks it. Raises
    `SubspaceError` where nothing of ours is there, `ResultError` for a record that is damaged or
    not of this subspace.

    >>> sl.from_hub("me/s2-position").label
    """
    path = located(repository)
    subspace = Subspace.load(path)
    record = path.parent / AUDIT_FILE
    if not record.is_file():
        return subspace
    audit = Audit(subspace, load_audit(record))
    if (audit.record.site, audit.record.model.weights_sha256) != (
        str(subspace.site), subspace.weights_sha256,
    ):  # fmt: skip
        raise ResultError(f"{repository}: its audit is not of the subspace beside it")
    return audit
