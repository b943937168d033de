import errno
import os
import tempfile
import time

import pytest
from disks import full_disk

from fer_ray import storage


def test_write_is_whole_and_leaves_nothing_beside_it(tmp_path):
    uri = storage.join(str(tmp_path), "a", "b.json")
    storage.write_json(uri, {"x": 1})
    storage.write_json(uri, {"x": 2})
    assert storage.read_json(uri) == storage.read_json(f"file://{uri}") == {"x": 2}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


def test_folders(tmp_path):
    assert storage.list_dirs(str(tmp_path / "none")) == []
    storage.write_bytes(str(tmp_path / "run" / "x" / "f"), b"1")
    assert storage.list_dirs(str(tmp_path / "run")) == ["x"]
    storage.delete_dir(str(tmp_path / "run"))
    storage.delete_dir(str(tmp_path / "run"))
    assert not storage.exists(str(tmp_path / "run"))


def test_what_is_not_a_number_never_gets_into_json(tmp_path):
    with pytest.raises(ValueError):
        storage.write_json(str(tmp_path / "x.json"), {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_damaged_file_of_ours_is_told_by_name_with_what_makes_it_again(tmp_path):
    file = tmp_path / "run.json"
    storage.write_json(str(file), {"id": "a", "values": {"x": 1}})
    whole = file.read_bytes()

    def read() -> dict:
        return storage.read_own_json(str(file), {"id": str, "values": dict}, "run jobs/train.py again")

    assert read() == {"id": "a", "values": {"x": 1}}
    damaged = [whole[:end] for end in range(len(whole))] + [b"3", b"[]", b"{}", b'{"id": 3}', b"\xff" + whole[1:]]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(storage.DamagedError, match="run.json: is damaged.*; run jobs/train.py again"):
            read()
    file.unlink()
    with pytest.raises(storage.DamagedError, match="run.json: is missing; run jobs/train.py again"):
        read()


def another_disk(*_) -> None:
    """What `os.rename` says when the target lies on another disk, so that the file must be copied."""
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("write", [
    lambda uri, large: storage.write_bytes(uri, large.read_bytes()),
    lambda uri, large: storage.create(uri, large.read_bytes()),
    lambda uri, large: storage.move(str(large), uri)], ids=["write", "create", "move"])
def test_a_full_disk_is_one_line_with_the_uri_and_leaves_no_part(tmp_path, monkeypatch, write):
    large, target = tmp_path / "large", tmp_path / "out/file"
    large.write_bytes(bytes(5000))
    monkeypatch.setattr(os, "rename", another_disk)
    with full_disk(1000), pytest.raises(storage.StorageError, match=f"^{target}: File too large$"):
        write(str(target), large)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_storage_that_is_a_file_or_refuses_is_told_by_its_uri(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    inside = str(tmp_path / "file/a/b")
    assert not storage.exists(inside)
    for act in (lambda: storage.write_bytes(inside, b""), lambda: storage.create(inside, b""),
                lambda: storage.read_bytes(inside), lambda: storage.list_files(inside), lambda: storage.stat(inside),
                lambda: storage.write_bytes("gs://bucket/x", b""), lambda: storage.write_bytes(str(tmp_path), b"")):
        with pytest.raises(storage.StorageError, match="Not a directory|File exists|unknown kind|Is a directory"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_storage_out_of_reach_is_not_taken_for_a_file_that_is_not_there(tmp_path, monkeypatch, error):
    def refuse(path, *_, **__):
        raise OSError(error, os.strerror(error), path)

    file = str(tmp_path / "x.json")
    for name in ("stat", "scandir", "remove"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("builtins.open", refuse)
    for ask in (storage.exists, storage.stat, storage.read_bytes, storage.list_dirs, storage.delete_file,
                lambda uri: storage.read_own_json(uri, {}, "run it again")):
        with pytest.raises(storage.StorageError, match=f"{file}: {os.strerror(error)}"):
            ask(file)


def test_all_writers_leave_the_mode_that_the_umask_gives(tmp_path):
    with tempfile.NamedTemporaryFile(dir=tmp_path, delete=False) as private:
        private.write(b"x")
    assert os.stat(private.name).st_mode & 0o777 == 0o600
    before = os.umask(0o027)
    try:
        storage.move(private.name, str(tmp_path / "out/moved"))
        storage.write_bytes(str(tmp_path / "out/written"), b"x")
        storage.create(str(tmp_path / "out/created"), b"x")
    finally:
        os.umask(before)
    assert {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == dict.fromkeys(
        ["moved", "written", "created"], 0o640)


def test_only_abandoned_parts_are_swept(tmp_path):
    old = time.time() - storage.ABANDONED_S - 1
    for name, when in ((f"a.parquet.{'0' * 32}.part", old), (f"b.parquet.{'1' * 32}.part", time.time()),
                       ("mine.part", old), ("a.parquet", old)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (when, when))
    storage.remove_abandoned(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", f"b.parquet.{'1' * 32}.part", "mine.part"]
    storage.remove_abandoned(str(tmp_path / "none"))
