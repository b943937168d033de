"""Tables as spreadsheets and other systems write them give the same rows, or an error names the cause."""

import pytest
from data_sets import put, read

from fer_ray import options

NAMES = {"0": "anger", "3": "happiness", "4": "sadness"}


def labels_of(root, **given):
    """Expression by the stem of each image's name."""
    rows, rejected = read(root, **given)
    assert rejected.empty
    return {image.rpartition("/")[2].partition(".")[0].casefold(): e
            for image, e in zip(rows.image, rows.expression, strict=True)}


def test_codes_that_a_spreadsheet_made_decimal(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / f"images/{name}.jpg")
    (tmp_path / "t.csv").write_text("image,expression\na.jpg,0.0\nb.jpg,3\nc.jpg,4.00\n")
    assert labels_of(tmp_path, names=NAMES) == {"a": "anger", "b": "happiness", "c": "sadness"}


@pytest.mark.parametrize("names", ["{0: anger, 3: happiness, 4: sadness}", '{"0": anger, "3": happiness, 4: sadness}'])
def test_names_of_numbers_need_no_quotes(tmp_path, names):
    for number in (0, 3, 4):
        put(tmp_path / f"set/{number}/{number}.jpg")
    (tmp_path / "job.yaml").write_text(f"name: n\ndata:\n  root: {tmp_path}/set\n  names: {names}\n")
    config = options.load(["--config", str(tmp_path / "job.yaml")])
    assert labels_of(config.data.root, kind="folder", names=config.data.names) == NAMES
