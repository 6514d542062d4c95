"""Subspaces and audits on the hub: a folder in its layout, and a server of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import torch

from subspacelens import Audit, ResultError, Site, Subspace, SubspaceError, load_model
from subspacelens.audit.card import audit_card, picture, subspace_card
from subspacelens.audit.hub import from_hub
from subspacelens.fit.subspace import made_by

CHILD = """
import sys
import subspacelens as sl
what, folder, repository = sys.argv[1:]
if what == "push":
    print(sl.push_to_hub(sl.from_hub(folder), repository, token="secret"))
else:
    found = sl.from_hub(repository)
    print(type(found).__name__, getattr(found, "label", found and str(getattr(found, "site", ""))))
"""


@pytest.fixture(scope="module")
def audited(tiny_folder, tmp_path_factory) -> Audit:
    import subspacelens as sl

    lens = load_model(tiny_folder)
    task = sl.ioi(lens.tokenizer, train=8, test=8, held_out=4)
    site = Site.parse("L1.resid_post@S2")
    captures = sl.capture_task(lens, task, [site])
    subspace = sl.fit(lens, captures.train, site, "mean-difference")
    return sl.audit(lens, captures, subspace, budget="fast", command="a | b `c`")


@pytest.fixture
def folder(audited, tmp_path):
    """What `push_to_hub` puts into a repository."""
    made = tmp_path / "ours"
    audited.save(made)
    return made / audited.record.site


def test_a_card_says_what_the_record_says(audited):
    card = audit_card(audited.subspace, audited.record, "me/thing")
    assert card.startswith("---\nlibrary_name: subspacelens\n")
    assert f"# thing: {audited.label}" in card and "mean-difference" in card
    for reason in audited.record.verdict.reasons:
        assert reason.split(":")[0].replace("<", "&lt;") in card
    for name in (*audited.record.effects, *audited.record.tests):
        assert f"| {name} |" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(row.replace("\\|", "").count("|") in (4, 6) for row in rows)
    assert "a | b 'c'" in card
    drawing = ET.fromstring(picture(audited.record))
    texts = [each.text for each in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert set(audited.record.effects) <= set(texts)
    plain = subspace_card(audited.subspace, "me/thing")
    assert "It was not audited" in plain and "verdict" not in plain


def hub_layout(cache, repository: str, files) -> None:
    """As the hub's own client keeps what it downloaded."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("a" * 40)
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)


def child(what: str, folder, repository: str, **environment: str):
    import os

    return subprocess.run(
        [sys.executable, "-c", CHILD, what, str(folder), repository], capture_output=True,
        text=True, env=os.environ | environment,
    )  # fmt: skip


def test_what_the_cache_of_the_hub_has_is_read_without_a_network(folder, audited, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub_layout(tmp_path / "cache", "me/audited", files)
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = child("pull", "-", "me/audited", **offline)
    assert done.stdout.split() == ["Audit", audited.label], done.stderr
    done = child("pull", "-", "me/absent", **offline)
    assert done.returncode and "SubspaceError" in done.stderr.strip().splitlines()[-1]


def test_a_folder_in_the_same_layout(folder, audited, tmp_path):
    again = from_hub(str(folder))
    assert isinstance(again, Audit) and again.record == audited.record
    assert torch.equal(again.subspace.basis, audited.subspace.basis)
    (folder / "audit.json").unlink()
    assert isinstance(from_hub(str(folder)), Subspace)
    (folder / "subspace.safetensors").unlink()
    with pytest.raises(SubspaceError):
        from_hub(str(folder))


def test_an_audit_of_another_subspace_is_refused(folder, audited, tiny_folder):
    lens = load_model(tiny_folder)
    other = made_by(
        lens, Site.parse("L2.resid_post@S2"), audited.subspace.basis, "", {"method": "x"}
    )
    other.save(folder / "subspace.safetensors")
    with pytest.raises(ResultError, match="is not of the subspace beside it"):
        from_hub(str(folder))


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push and a pull ask for; `files` by path in the one repository."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    refuses = False

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, *_args) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, status: int = 200, **found) -> None:
        self.answer(json.dumps(found).encode(), status, Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        if self.refuses or self.headers.get("Authorization") != "Bearer secret":
            return self.say(403, error="no")
        if self.path == "/api/repos/create":
            return self.say(url=f"{self.address}/me/thing", id="me/thing")
        if self.path == "/api/validate-yaml":
            return self.say(errors=[], warnings=[])
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            return self.say(
                files=[{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])
        where = f"{self.address}/me/thing/commit/{'b' * 40}"
        self.say(commitUrl=where, commitOid="b" * 40, hookOutput="")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.partition("/resolve/")[2].partition("/")[2].partition("?")[0]
        if name in self.files:
            data = self.files[name]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self.answer(data, ETag=etag, X_Repo_Commit="b" * 40, Accept_Ranges="none")
        if "/api/models/me/thing/tree/" in self.path and self.files:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "c" * 40}
                for name, data in self.files.items()
            ]
            return self.answer(json.dumps(tree).encode(), Content_Type="application/json")
        if "/api/models/me/thing" in self.path and self.files:
            return self.say(
                id="me/thing", sha="b" * 40,
                siblings=[{"rfilename": name} for name in self.files],
            )  # fmt: skip
        self.say(404, error="not found")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch):
    Hub.files, Hub.asked, Hub.refuses = {}, [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_there_and_back_through_a_server(folder, audited, tmp_path, hub):
    online = {
        "HF_ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    done = child("push", folder, "me/thing", **online)
    assert done.returncode == 0, done.stderr
    assert set(Hub.files) == {"README.md", "audit.json", "effects.svg", "subspace.safetensors"}
    assert Hub.files["subspace.safetensors"] == (folder / "subspace.safetensors").read_bytes()
    done = child("pull", "-", "me/thing", **online)
    assert done.stdout.split() == ["Audit", audited.label], done.stderr
    Hub.refuses = True
    done = child("push", folder, "me/thing", **online)
    assert done.returncode and "ResultError" in done.stderr.strip().splitlines()[-1]
