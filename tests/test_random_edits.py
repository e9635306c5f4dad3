"""Random edits of the notebook; ``python tests/random_edits.py`` makes more of them."""

import pytest
from random_edits import Edits


@pytest.mark.slow
def test_no_edit_shows_an_old_result_as_new(tmp_path):
    edits, ends, wrong = Edits(tmp_path), set(), []
    for number in range(14):
        try:
            _, end = edits.one(number, seed=1)
            ends.add(end)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)
    assert len(ends) >= 3  # several ways to end
