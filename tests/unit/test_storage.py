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
