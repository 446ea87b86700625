"""One set of decoder processes for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.media.samples import LIMITS
from trifocal.media.reader import MediaReader


@pytest.fixture(scope="module")
def reader() -> Iterator[MediaReader]:
    """Media through real decoder processes, as the server reads them."""
    made = MediaReader(LIMITS, num_decoders=2)
    yield made
    made.close()
