import pytest

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
