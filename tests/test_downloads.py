"""Byte code kept beside downloads: by the same file, and by nothing that only looks like it."""

from __future__ import annotations

from pathlib import Path

from tests.downloads import copy, keep_bytecode


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_copy_of_the_downloads_gets_byte_code_and_they_do_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = write(cache / "archive-v0" / "abc" / "package" / "one.py", "ONE = 1\n")
    write(cache / "environments-v2" / "of-a-program" / "two.py")
    copied = copy(cache, tmp_path / "downloads")
    assert copied is not None
    assert copy(cache, tmp_path / "downloads") == copied  # as another worker asks
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
