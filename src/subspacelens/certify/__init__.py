"""What a site must prove before it is used.

Hooks that silently miss are the field's loudest complaint, so nothing here is taken on trust: a few
short prompts of random tokens run through the untouched model with plain hooks, and through
`capture` and `Replay`, and both must agree. A proof passes when its measured error is within its
tolerance. Certificates are kept until the model changes, in whatever way."""

from ..core.modules import callable_package
from .certificate import (
    Certificate,
    DoctorRow,
    centred,
    certify,
    doctor_rows,
    require,
    require_streams,
)
from .examination import KERNEL, TOLERANCES, Proof, Tolerance
from .plain_hooks import trial_pairs

__all__ = [
    "KERNEL",
    "TOLERANCES",
    "Certificate",
    "DoctorRow",
    "Proof",
    "Tolerance",
    "centred",
    "certify",
    "doctor_rows",
    "require",
    "require_streams",
    "trial_pairs",
]

callable_package(__name__, certify)
