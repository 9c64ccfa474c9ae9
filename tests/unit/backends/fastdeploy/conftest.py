from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.backends.fastdeploy.fake import Fake


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    made = Fake(tmp_path, monkeypatch)
    made.install()
    made.behave()
    yield made
    for runner in made.runners:
        runner.close()
