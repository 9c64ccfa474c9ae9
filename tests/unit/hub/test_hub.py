"""Hub ids against an endpoint of our own: revision, progress, resume, offline, and every refusal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ernie_accel import hub
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.errors import ArgumentError, CheckpointError, HubError, MissingExtraError
from ernie_accel.testing import synthetic, tiny_config

pytest.importorskip("huggingface_hub")

REPOSITORY = "baidu/ERNIE-4.5-tiny-PT"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, dict[str, bytes]]] = {}
    cut_after: ClassVar[dict[str, list[int]]] = {}
    requests: ClassVar[list[tuple[str, str, str | None]]] = []
    broken: ClassVar[bool] = False

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append((self.command, path, self.headers.get("Range")))
        if self.broken:
            self.error(500, "")
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        if match:
            self.describe(*match.groups())
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match and match[2] in self.files and match[3] in self.files[match[2]]:
            self.send_file(match[3], match[2], self.files[match[2]][match[3]], body)
        else:
            self.error(404, "EntryNotFound")

    def describe(self, repository: str, kind: str, revision: str) -> None:
        commit = COMMITS.get(revision, revision)
        if repository == "baidu/gated":
            self.error(403, "GatedRepo")
        elif repository != REPOSITORY:
            self.error(404, "RepoNotFound")
        elif commit not in self.files:
            self.error(404, "RevisionNotFound")
        elif kind == "revision":
            siblings = [{"rfilename": name} for name in self.files[commit]]
            self.send_json({"_id": "1", "id": repository, "sha": commit, "siblings": siblings})
        else:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files[commit].items()
            ]
            self.send_json(tree)

    def send_json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, name: str, commit: str, data: bytes, body: bool) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        cuts = self.cut_after.get(name)
        if cuts:
            self.wfile.write(data[start : start + cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
        else:
            self.wfile.write(data[start:])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    files: dict[str, dict[str, bytes]] = {}
    for seed, commit in enumerate(COMMITS.values()):
        path = tmp_path_factory.mktemp("repository") / "m"
        synthetic(tiny_config(True), seed=seed, dtype="float32").write(path, shards=2)
        files[commit] = {item.name: item.read_bytes() for item in path.iterdir()}
        files[commit].update(
            {"tokenizer.model": b"pieces", "README.md": b"#", "modeling.py": b"1", "pytorch_model.bin": b"p"}
        )
        files[commit]["mtp/model.safetensors"] = b"draft"
    return files


@pytest.fixture
def fake(repository: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    from huggingface_hub import constants, file_download

    class Handler(FakeHub):
        files = repository
        cut_after: ClassVar[dict[str, list[int]]] = {}
        requests: ClassVar[list[tuple[str, str, str | None]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # releases before 1.0 copied it when they were imported
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def shards(fake: type[FakeHub]) -> list[tuple[str, str | None]]:
    return [
        (Path(path).name, part) for verb, path, part in fake.requests if verb == "GET" and "/resolve/" in path
    ]


def test_a_local_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/org") == tmp_path / "org"
    with pytest.raises(ArgumentError, match="revision='v2'"):
        hub.resolve("org/name", revision="v2")


@pytest.mark.parametrize(
    "name", ["/no/such/dir", "./org/name", "name", "a/b/c", "org/na me", "-org/name", "org/..", ""]
)
def test_what_is_neither_a_path_nor_an_id_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(CheckpointError, match="organisation/name"):
            hub.resolve(name)
    assert not hub.is_hub_id(name)


def test_a_path_object_is_never_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        hub.resolve(Path("baidu/model"))


def test_what_the_model_needs_is_fetched_and_opens(fake: type[FakeHub], tmp_path: Path) -> None:
    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    assert sorted(item.name for item in path.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
    ]
    with open_checkpoint(path) as opened:
        assert opened.config == tiny_config(True)
        assert opened.info.name == REPOSITORY


def test_a_revision_is_a_branch_or_a_commit(fake: type[FakeHub], tmp_path: Path) -> None:
    one, two = (hub.resolve(REPOSITORY, revision=name, cache_dir=tmp_path) for name in ("main", "v2"))
    assert one.name == COMMITS["main"]
    assert two.name == COMMITS["v2"]
    assert hub.resolve(REPOSITORY, revision=COMMITS["v2"], cache_dir=tmp_path) == two
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (open_checkpoint(one).tensor(name).data != open_checkpoint(two).tensor(name).data).any()


def counts_bytes() -> bool:
    from huggingface_hub import __version__

    return tuple(int(part) for part in __version__.split(".")[:2]) >= (1, 1)


needs_counts = pytest.mark.skipif(
    not counts_bytes(), reason="this hub library does not count bytes over all files"
)


@needs_counts
def test_progress_counts_the_bytes_to_the_end(fake: type[FakeHub], tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = hub.resolve(
        REPOSITORY, cache_dir=tmp_path, progress=lambda stage, done, total: calls.append((stage, done, total))
    )
    size = sum(item.stat().st_size for item in path.iterdir())
    assert {stage for stage, _, _ in calls} == {"download"}
    assert calls[-1][1:] == (size, size)
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})
    assert all(done <= total for _, done, total in calls)


@needs_counts
def test_an_error_in_progress_comes_out_as_it_is(fake: type[FakeHub], tmp_path: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        hub.resolve(REPOSITORY, cache_dir=tmp_path, progress=fail)


def test_a_dropped_connection_goes_on_where_it_stopped(
    fake: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    # what is lost is at most the piece under way, else 10 MB
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    name = "model-00002-of-00002.safetensors"
    fake.cut_after[name] = [100_000]
    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    parts = [part for file, part in shards(fake) if file == name]
    assert parts[0] is None
    assert len(parts) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-", parts[1] or "")
    assert (path / name).read_bytes() == fake.files[COMMITS["main"]][name]


@needs_counts
def test_a_download_that_was_interrupted_is_completed_by_the_next_call(
    fake: type[FakeHub], tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done > 100_000:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        hub.resolve(REPOSITORY, cache_dir=tmp_path, progress=stop)
    with pytest.raises(HubError, match="not complete in the cache"):
        hub.resolve(REPOSITORY, revision="v2", cache_dir=tmp_path, offline=True)
    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    for item in path.iterdir():
        assert item.read_bytes() == fake.files[COMMITS["main"]][item.name]


def test_a_second_call_fetches_only_what_is_missing(fake: type[FakeHub], tmp_path: Path) -> None:
    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    lost = path / "model-00001-of-00002.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    fake.requests.clear()
    assert hub.resolve(REPOSITORY, cache_dir=tmp_path) == path
    assert [file for file, _ in shards(fake)] == [lost.name]
    assert lost.exists()


def test_offline_finds_what_is_in_the_cache_and_asks_nobody(fake: type[FakeHub], tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"baidu/ERNIE-4.5-tiny-PT: it is not complete in the cache"):
        hub.resolve(REPOSITORY, cache_dir=tmp_path, offline=True)
    assert fake.requests == []
    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    fake.requests.clear()
    assert hub.resolve(REPOSITORY, cache_dir=tmp_path, offline=True) == path
    assert hub.resolve(REPOSITORY, revision=COMMITS["main"], cache_dir=tmp_path, offline=True) == path
    with pytest.raises(HubError, match="not complete in the cache"):
        hub.resolve(REPOSITORY, revision="v2", cache_dir=tmp_path, offline=True)
    assert fake.requests == []


def test_the_hubs_own_switch_works_without_the_argument(fake: type[FakeHub], tmp_path: Path) -> None:
    from huggingface_hub import constants

    path = hub.resolve(REPOSITORY, cache_dir=tmp_path)
    code = f"from ernie_accel import hub; print(hub.resolve({REPOSITORY!r}, cache_dir={str(tmp_path)!r}))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": constants.ENDPOINT}
    fake.requests.clear()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(path), done.stderr
    assert fake.requests == []


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("baidu/none", None, "no such repository"),
        (REPOSITORY, "v9", "revision='v9' does not exist"),
        ("baidu/gated", None, "access must be granted"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    name: str, revision: str | None, words: str, fake: type[FakeHub], tmp_path: Path
) -> None:
    with pytest.raises(HubError, match=words) as caught:
        hub.resolve(name, revision=revision, cache_dir=tmp_path)
    assert str(caught.value).startswith(name)


def test_a_hub_that_is_down_is_one_clear_error(
    fake: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(fake, "broken", True)
    with pytest.raises(HubError, match="cannot be reached"):
        hub.resolve(REPOSITORY, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        hub.resolve(REPOSITORY, cache_dir=tmp_path)


def test_without_the_extra_one_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ernie-accel\[hub\]'"):
        hub.resolve("baidu/model")


def test_nothing_is_no_place() -> None:
    with pytest.raises(ArgumentError, match="source='': must be the path of a directory, or a hub id"):
        hub.resolve("")


def test_paths_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        hub.resolve("~nobody-of-that-name/model/x")
    (tmp_path / "~nobody-of-that-name").mkdir()
    assert hub.resolve("~nobody-of-that-name") == Path("~nobody-of-that-name")
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        hub.resolve("n" * 300)
