from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what an earlier run, or the user, has left in the cache of quantised weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERNIE_ACCEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
