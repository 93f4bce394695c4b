"""Assertions of the shared checks say what they compared."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFile

pytest.register_assert_rewrite("tests.lmms.synthetic.checks")


@pytest.fixture(autouse=True, scope="module")
def pictures_as_they_were():
    """lmms-eval makes pillow take truncated files when imported; tests that import it themselves put that back."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before
