"""Import tests keep their cache to themselves."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """One cache for all of them: the data is decoded and whitened once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
