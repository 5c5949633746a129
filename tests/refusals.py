"""That a study refuses what it cannot do in one line, before anything runs or is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bwdln import simulate, studies
from bwdln.config import Config
from bwdln.errors import InvalidOption


def check_refused(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Assert that conducting the study raises `InvalidOption` that begins with a message, a pattern."""
    monkeypatch.setattr(simulate, "run_together", None)
    with pytest.raises(InvalidOption, match=message) as caught:
        studies.conduct(config, folder)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []
