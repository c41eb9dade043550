"""Errors that a user meets are of one kind."""

from __future__ import annotations

import pytest

from bella.errors import BellaError, require


@pytest.mark.parametrize("kind", [BellaError, ImportError, ValueError])
def test_a_missing_library_is_bad_input_and_an_import_error(kind):
    with pytest.raises(kind, match=r"bella-bnn\[hf\]"):
        require("no_such_library_of_anybody", extra="hf")
