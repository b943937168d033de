"""What the service answers over HTTP, without Ray: images, and a reason for whatever cannot be answered."""

import base64
import dataclasses
import io
import re

import checkpoints as tiny
import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fer_ray import Recognizer
from fer_ray.cli import serving
from fer_ray.config import Config, ConfigError, ServeConfig
from fer_ray.data.sample import render_face
from fer_ray.report import pages
from fer_ray.use import drawing, web

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def face() -> bytes:
    drawn = render_face(np.random.default_rng(0), "happiness", 1.0, np.random.default_rng(0), (180, 180), 50)
    return cv2.imencode(".png", drawn)[1].tobytes()


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return Recognizer.load(tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.2))


def client(recognizer, token: str = "") -> TestClient:
    async def recognize(uploads):
        found = recognizer([one.content for one in uploads])
        return [dataclasses.replace(one, image=upload.name) for upload, one in zip(uploads, found, strict=True)]

    page = pages.render_service({"calibrated": True, "token": bool(token), "max_mb": 1.0, "colours": drawing.COLOURS})
    return TestClient(web.app(recognize, web.Settings(page, True, web.digest(token) if token else "", 1.0)))


def files(**named: bytes) -> list:
    return [("images", (name.replace("_", "."), content)) for name, content in named.items()]


def as_json(*images: dict) -> dict:
    return {"images": list(images)}


def test_files_and_json_give_what_the_recognizer_says(recognizer, face):
    asked = client(recognizer)
    grey = io.BytesIO()
    Image.new("L", (64, 64), 100).save(grey, "PNG")
    answer = asked.post("/predict", files=files(a_png=face, grey_png=grey.getvalue(), empty_jpg=b"")).json()
    assert answer["calibrated"] is True
    expected = recognizer([face, grey.getvalue(), b""])
    assert [one["image"] for one in answer["results"]] == ["a.png", "grey.png", "empty.jpg"]
    assert [one["reason"] for one in answer["results"]] == [None, "no face found", "empty file"]
    found, wanted = answer["results"][0]["faces"][0], expected[0].faces[0]
    assert tuple(found["box"]) == wanted.box and found["expression"] == wanted.expression
    assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-6)
    content = base64.b64encode(face).decode()
    by_json = asked.post("/predict", json=as_json({"content": content}, {"name": "b", "content": content})).json()
    assert [one["image"] for one in by_json["results"]] == ["#0", "b"]
    assert by_json["results"][1]["faces"][0]["box"] == found["box"]


@pytest.mark.parametrize(("request_of", "status", "reason"), [
    ({"files": files(empty_jpg=b"")}, 422, "empty.jpg: empty file"),
    ({"files": files(a_jpg=b"text", b_png=b"")}, 422, "a.jpg: not an image; b.png: empty file"),
    ({"files": files(a_jpg=b"\0" * 1_000_001)}, 413, "the request is larger than 1 MB"),
    ({"content": (b"x" * 300_000 for _ in range(4)), "headers": {"content-type": "application/json"}}, 413, "1 MB"),
    ({"files": files(**{f"{n}_png": b"" for n in range(65)})}, 400, "Maximum number of files is 64"),
    ({"json": as_json(*[{"content": ""}] * 65)}, 422, "65 images; a request takes at most 64"),
    ({"data": {"images": "no file"}}, 415, "the content type is application/x-www-form-urlencoded"),
    ({"files": [("other", (None, "no file"))]}, 422, "no image in the request"),
    ({"json": as_json()}, 422, "no image in the request"),
    ({"json": as_json({"name": "x.png", "content": "%"})}, 422, "x.png: its content is not base64"),
    ({"json": as_json({"name": "x.png", "content": 3})}, 422, "x.png: its content is not base64"),
    *(({"content": body, "headers": {"content-type": "application/json"}}, 422, "the JSON must be of the form")
      for body in ("", "[", "[1]", "{}", '{"images": 3}', '{"images": {"a": "b"}}', "[" * 100_000, "\ud800".encode(
          "utf-8", "surrogatepass"))),
    ({"content": b"x"}, 415, "the content type is missing"),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
])
def test_what_cannot_be_answered_has_a_reason_that_names_the_file(recognizer, request_of, status, reason):
    answer = client(recognizer).post("/predict", **request_of)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_a_token_is_compared_before_anything_is_read(recognizer, face):
    asked = client(recognizer, TOKEN)
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
                  {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer \xe9".encode("latin-1")}):
        answer = asked.post("/predict", files=files(a_jpg=b"\0" * 1_000_001), headers=given)
        assert answer.status_code == 401 and "token" in answer.json()["detail"]
    good = asked.post("/predict", files=files(a_png=face), headers={"Authorization": f"Bearer {TOKEN}"})
    assert good.status_code == 200
    assert asked.get("/health").json() == {"status": "ok"} and TOKEN not in asked.get("/").text


def test_the_page_and_the_description_ask_nothing_of_other_sites(recognizer):
    asked = client(recognizer)
    page = asked.get("/")
    assert not re.findall(r"(?:src|href|url\()\W*(?!data:|blob:)\w+://", page.text) and "://" not in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert asked.get("/docs").status_code == asked.get("/redoc").status_code == 404
    described = asked.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(described["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert described["security"] and {"401", "413", "422", "503"} <= described["responses"].keys()


@pytest.mark.parametrize(("host", "token", "words"), [
    ("0.0.0.0", "", "serve.host: 0.0.0.0 is open to the network, so a token is needed: set FER_RAY_SERVE_TOKEN"),
    ("::", "", "open to the network"), ("", "", "serve.host: ''"),
    ("127.0.0.1", "short", "FER_RAY_SERVE_TOKEN: must have at least 16 characters"),
    ("127.0.0.1", "with a blank in its middle", "no blanks"), ("no.such.host.invalid", "", "no address of a machine")])
def test_whoever_opens_the_service_to_the_network_needs_a_token(host, token, words, monkeypatch):
    monkeypatch.setenv("FER_RAY_SERVE_TOKEN", token)
    with pytest.raises(ConfigError) as error:
        serving.run_serve(Config(serve=ServeConfig(host=host)))
    assert words in str(error.value) and "in its middle" not in str(error.value)
