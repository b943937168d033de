"""Of another data set, people and pictures that training has seen are found."""

import numpy as np
import pytest
from PIL import Image
from preparing import in_this_process, prepared

from fer_ray.config import Config
from fer_ray.data import prepare, prepared_set
from fer_ray.data_config import DataConfig, FacesConfig, FolderConfig, SourceConfig, SplitConfig
from fer_ray.evaluate import acquainted

PATTERN = r"([^/]+)_\d+\."


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The URIs and indices of two prepared sets of drawn noise; `people` of each are names, two pictures a person."""
    monkeypatch.setattr(prepare, "_on_workers", in_this_process)

    def write(name, people, seed):
        for number, person in enumerate(people):
            for take in range(2):
                file = tmp_path / name / ("happy" if take else "sad") / f"{person}_{take}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([seed, number, take]).integers(0, 256, (12, 12), np.uint8)
                Image.fromarray(noise).resize((48, 48)).save(file)
        return prepare_set(name)

    def prepare_set(name):
        config = Config(name=name, storage=str(tmp_path / "out"), faces=FacesConfig(already_cropped=True),
                        split=SplitConfig(by="test"), data=DataConfig(
                            root=str(tmp_path / name), folder=FolderConfig(subject_pattern=PATTERN),
                            sources=[SourceConfig("folder", ".", name)]))
        uri = str(prepared(config))
        return uri, prepared_set.read_index(uri)

    return tmp_path, write, prepare_set


def test_people_of_the_same_name_and_of_copied_pictures_are_known(both):
    root, write, prepare_set = both
    trained, train_rows = write("web", ["Ann Lee", "Bo Chen", "S001", "Cleo"], 0)
    write("kept", ["ann-lee", "Dora", "S001", "Erik"], 1)
    (root / "kept/happy/Erik_1.png").write_bytes((root / "web/happy/Bo Chen_1.png").read_bytes())
    other, rows = prepare_set("kept")
    found = acquainted.find(trained, train_rows, other, rows)
    assert found.people == ["ann-lee", "erik"] and found.codes == ["s001"]
    assert sorted(rows["image"][found.copied].str.rsplit("/", n=1).str[1]) == ["Erik_1.png"]
    assert sorted(rows["image"][found.known].str.rsplit("/", n=1).str[1]) == [
        "Erik_0.png", "Erik_1.png", "ann-lee_0.png", "ann-lee_1.png"]
    alone = acquainted.find(trained, train_rows[train_rows["subject"] == "web:cleo"], other, rows)
    assert alone.people == alone.codes == [] and not alone.copied.any() and not alone.known.any()
