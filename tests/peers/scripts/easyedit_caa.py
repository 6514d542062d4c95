"""EasyEdit: a vector made and saved by its own `generate_caa_vectors`, and added by `apply_caa`.

Two packages are taken without what their `__init__` imports, which is every method at once: at this
commit that fails.
"""

import sys
from pathlib import Path
from types import ModuleType

import job as jobs
import steer
import torch

job = jobs.read()
for name in ("steer.utils", "steer.datasets"):
    package = ModuleType(name)
    package.__path__ = [str(Path(steer.__file__).parents[1].joinpath(*name.split(".")))]
    sys.modules[name] = package
from steer.utils.hparams import HyperParams  # noqa: E402
from steer.utils.templates import build_model_input  # noqa: E402

sys.modules["steer.utils"].HyperParams = HyperParams
sys.modules["steer.utils"].build_model_input = build_model_input
dtypes = sys.modules["steer.utils.alg_dict"] = ModuleType("steer.utils.alg_dict")
dtypes.DTYPES_DICT = {"fp32": torch.float32}
from steer.models.get_model import get_model  # noqa: E402
from steer.vector_appliers.caa.apply_caa import apply_caa  # noqa: E402
from steer.vector_appliers.caa.apply_caa_hparam import ApplyCAAHyperParams  # noqa: E402
from steer.vector_generators.caa.generate_caa_hparam import CAAHyperParams  # noqa: E402
from steer.vector_generators.caa.generate_caa_vectors import generate_caa_vectors  # noqa: E402

shared = dict(model_name_or_path=job.model, layers=[1, 2], dtype="fp32", device="cpu")
making = CAAHyperParams(**shared, steer_vector_output_dir=str(job.out))
model, tokenizer = get_model(making)
words = [w for w, _ in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])][4:24]
rows = [
    {"question": a, "matching": b, "not_matching": c}
    for a, b, c in zip(words[::3], words[1::3], words[2::3], strict=False)
]
generate_caa_vectors(making, rows, model)
using = ApplyCAAHyperParams(
    **shared, multipliers=[1.5, 1.5], steer_vector_load_dir=str(job.out / "caa_vector")
)
with torch.no_grad():
    logits = apply_caa(using, model).get_logits(job.base)[:, -1]
jobs.done(job, logits=logits)
