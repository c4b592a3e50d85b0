from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.errors import OacirError
from infra.base.secrets import read_secret


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-1 \n")
    found = read_secret("SOME_KEY", None)
    assert found is not None
    assert found.get_secret_value() == "sk-1"
    assert "sk-1" not in repr(found) + str(found) + f"{found}"
    monkeypatch.setenv("SOME_KEY", "")
    assert read_secret("SOME_KEY", None) is None


def test_from_a_file_of_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "not this")
    file = tmp_path / "key"
    file.write_text("sk-2\n")
    file.chmod(0o600)
    found = read_secret("SOME_KEY", str(file))
    assert found is not None
    assert found.get_secret_value() == "sk-2"
    file.chmod(0o640)
    with pytest.raises(OacirError, match=r"others may read this key \(mode 0640\); chmod 600"):
        read_secret("SOME_KEY", str(file))
    file.chmod(0o600)
    file.write_text(" \n")
    with pytest.raises(OacirError, match="holds no key"):
        read_secret("SOME_KEY", str(file))
    with pytest.raises(OacirError, match="cannot be read"):
        read_secret("SOME_KEY", str(tmp_path / "absent"))
