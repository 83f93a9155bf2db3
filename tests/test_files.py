import os
import stat
from pathlib import Path

import pytest

from mtlsearch import files


def test_writes_text_and_bytes_into_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write(path, "Schön")
    assert path.read_text(encoding="utf-8") == "Schön"
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("owner, function", [(os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, owner, function):
    path = tmp_path / "file"
    files.write(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, function, fail)
    with pytest.raises(OSError, match=r"Could not write .*file.*No space left"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_never_seen_in_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, "old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_text()))
    files.write(path, "new")
    assert seen == ["old"] and path.read_text() == "new"
