"""What a prediction of photographs left behind is used again if it is whole, and made again if it is not."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_ray import storage
from fer_ray.evaluate import inference

IMAGES = [("a.png", None), ("NA", "file not found"), ("ü, b.png", None)]
TABLE = 'image,expression,reason\na.png,fear,\nNA,,file not found\n"ü, b.png",anger,\n'


@pytest.mark.parametrize(("content", "whole"), [
    (TABLE, True), (None, False), ("", False), (TABLE[:-1], False), (TABLE[: TABLE.index("\nNA") + 1], False),
    (TABLE.replace("a.png", "c.png"), False), ("\0\n", False)])
def test_a_table_is_used_again_only_if_it_has_a_row_for_each_image(tmp_path, content, whole):
    file = tmp_path / "predictions.csv"
    if content is not None:
        file.write_text(content)
    assert inference._has_all(IMAGES, str(file)) is whole


@pytest.mark.parametrize("damage", [lambda c: c, lambda c: None, lambda c: b"", lambda c: c[:-20],
                                    lambda c: c[: len(c) // 2], lambda c: b"PAR1" + c[10:]])
def test_a_damaged_part_is_as_good_as_none(tmp_path, damage):
    file = tmp_path / "part.parquet"
    rows = [{"image": "a.png", "expression": "fear", "p_fear": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows, schema=inference._PREDICTED), file)
    content = file.read_bytes()
    damaged = damage(content)
    file.unlink() if damaged is None else file.write_bytes(damaged)
    part = inference._read_part(str(file))
    assert (part is not None) == (damaged == content)


def test_a_part_of_another_table_is_no_part(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "part.parquet")
    assert inference._read_part(str(tmp_path / "part.parquet")) is None


@pytest.mark.parametrize(("content", "same"), [('{"request": "r"}', True), ('{"request": "other"}', False),
                                               ('{"request', False), ("[]", False), (None, False)])
def test_predictions_belong_to_their_request(tmp_path, content, same):
    if content is not None:
        (tmp_path / "request.json").write_text(content)
    assert inference._is_of("r", str(tmp_path / "request.json")) is same


def test_an_outage_is_not_taken_for_a_damaged_part(monkeypatch):
    def fail(uri):
        raise storage.StorageError(f"{uri}: no answer")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(storage.StorageError):
        inference._read_part("s3://bucket/part.parquet")
