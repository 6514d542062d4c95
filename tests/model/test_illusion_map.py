"""The illusion map of the embedded model, at the layers where the theory says something."""

from __future__ import annotations

import pytest

from subspacelens import ioi
from subspacelens.survey import illusion_map

pytestmark = pytest.mark.model


def test_illusions_work_between_writer_and_reader_and_fail_after_the_last_reader(lens):
    task = ioi(lens.tokenizer, train=16, test=16, held_out=0)
    s2 = illusion_map(lens, task, ["S2"], layers=[10, 18, 25], pairs=16)
    end = illusion_map(lens, task, ["END"], layers=[10, 22, 26], pairs=16)
    assert s2.working("S2") == [18] and end.working("END") == [22]
    for illusions, layer in ((s2, 25), (end, 26)):
        late = illusions.at(layer, illusions.labels[0])
        assert max(i.effect.value for i in late.illusions.values()) <= 0.03
    assert all(abs(site.random.value) < 0.1 for site in (*s2.sites, *end.sites))
