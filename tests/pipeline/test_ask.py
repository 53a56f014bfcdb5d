"""Questions of one's own: what cannot be asked is refused before anything is loaded. Needs nothing."""

from __future__ import annotations

import pytest
from PIL import Image

from pipeline.tools.ask import AskRequest
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import ConfigError


def test_a_picture_is_one_that_can_be_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    assert AskRequest(image=str(tmp_path / "x.png")).image
    with pytest.raises(ConfigError, match=r"README\.md: it is no picture of a known format \(BMP, .* \(image\)"):
        AskRequest(image=str(REPOSITORY / "README.md"))
    with pytest.raises(ConfigError, match=r"nowhere\.png does not exist; it should be a picture \(image\)"):
        AskRequest(image="nowhere.png")


def test_an_answer_has_a_token_at_least():
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 1, got 0"):
        AskRequest(max_new_tokens=0)
