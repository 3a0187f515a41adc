"""Byte code kept beside downloads: by the same file, and by nothing that only looks like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.baking import BakedProject
from tests.downloads import copy, keep_bytecode, sync


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_copy_of_the_downloads_gets_byte_code_and_they_do_not(tmp_path: Path) -> None:
    cache, copied = tmp_path / "cache", tmp_path / "downloads"
    source = write(cache / "archive-v0" / "abc" / "package" / "one.py", "ONE = 1\n")
    write(cache / "environments-v2" / "of-a-program" / "two.py")
    copy(cache, copied)
    assert [path.name for path in copied.iterdir()] == ["archive-v0"]

    site = tmp_path / "site"
    write(site / "package" / "__pycache__" / "one.cpython-311.pyc", "code")
    (site / "package" / "one.py").hardlink_to(source)
    write(site / "other" / "__pycache__" / "one.cpython-311.pyc", "code of another file")
    write(site / "other" / "one.py", "ONE = 1\n")
    write(site / "other" / "__pycache__" / "gone.cpython-311.pyc")
    assert keep_bytecode(site, copied) == 1
    assert keep_bytecode(site, copied) == 0
    kept = copied / "archive-v0" / "abc" / "package" / "__pycache__" / "one.cpython-311.pyc"
    assert kept.read_text() == "code"
    assert not (source.parent / "__pycache__").exists()


def test_where_files_cannot_have_a_second_name_there_is_none(
    ready: BakedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert sync(ready, tmp_path / "downloads") is None
    assert [path.name for path in tmp_path.iterdir()] == ["downloads.lock"]
