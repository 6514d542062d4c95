"""What is kept is that of the same question, and is not made again."""

from __future__ import annotations

from subspacelens.core.kept import Kept, keep, kept


def test_a_row_is_that_of_its_origin(tmp_path):
    path, origin = tmp_path / "rows" / "a.json", {"seed": 0, "code": "c"}
    assert kept(path, origin) is None
    keep(path, {"value": 1.5, "origin": origin})
    assert kept(path, origin) == {"value": 1.5, "origin": origin}
    assert kept(path, origin | {"code": "d"}) is None
    path.write_text('{"value": 1.5, "ori')
    assert kept(path, origin) is None
    path.write_text("[]")
    assert kept(path, origin) is None


def test_what_is_kept_is_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return [1.5]

    parts = Kept(tmp_path, "one")
    assert [parts.part("x", list[float], make) for _ in range(3)] == [[1.5]] * 3 and len(made) == 1
    assert parts.earlier >= 0
    assert Kept(tmp_path, "two").part("x", list[float], make) == [1.5] and len(made) == 2
    (file,) = (tmp_path / "one").iterdir()
    for broken in ("{", "[]", '{"origin": "one"}', '{"origin": "one", "part": "x", "seconds": 1}'):
        file.write_text(broken)
        assert parts.part("x", list[float], make) == [1.5]
    assert len(made) == 6
    parts.clear()
    assert not (tmp_path / "one").exists() and (tmp_path / "two").exists()
    assert Kept().part("x", list[float], make) == [1.5] and len(made) == 7
