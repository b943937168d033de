"""The Python that README.md and docs/use.md show, as it is written there."""

import re

import checkpoints as tiny
import cv2
import documented
import numpy as np
import pandas as pd
import pytest
import videos
from PIL import Image

from fer_ray.data.drawn_face import render_face


def blocks_of(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (documented.REPO / file).read_text(), re.M | re.S)


@pytest.mark.parametrize("file", ["README.md", "docs/use.md"])
def test_the_lines_run_and_say_what_is_in_the_photographs(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "models/quickstart", temperature=1.2)
    face = render_face(np.random.default_rng(0), "happiness", 1.0, np.random.default_rng(0), (180, 180), 50)
    cv2.imwrite("photograph.jpg", np.hstack([face, face]))
    for name in ("photographs/a.png", "sample_data/jaffe/KA.HA1.12.tiff", "sample_data/jaffe/KL.SU1.44.tiff",
                 "sample_data/jaffe/KM.AN1.47.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, face)
    videos.write("film.mp4", videos.walk(0.5))
    blocks = blocks_of(file)
    assert len(blocks[0].split("\n\n")[1].splitlines()) == 4  # and the import: five lines
    names: dict = {}
    for block in blocks:
        exec(compile(block, file, "exec"), names)
    assert names["result"].faces and names["result"].faces[0].expression in capsys.readouterr().out
    with Image.open("annotated.png") as drawn:
        assert drawn.size == (360, 180)
    if file == "docs/use.md":
        assert pd.read_csv("faces.csv")["image"].tolist() == ["photographs/a.png"]
        with Image.open("use.png") as drawn:
            assert drawn.size == (540, 180)
