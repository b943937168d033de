"""The service as its command starts it, once for all tests: equal results, bad input, crowds, and its page."""

import collections
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import checkpoints as tiny
import cv2
import grpc
import numpy as np
import pytest
import requests
from cluster.conftest import command, joining, ray_on
from PIL import Image

from cluster import test_connection
from fer_ray import Recognizer
from fer_ray.config import ServeConfig
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.data.sample import render_face
from fer_ray.data_config import FacesConfig
from fer_ray.use.photographs import Search

TOKEN = "a-token-of-this-test"
QUEUED = 8
BROWSER = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def draw(expression: str, size: tuple[int, int] = (240, 240), face: int = 75) -> np.ndarray:
    return render_face(np.random.default_rng(3), expression, 1.0, np.random.default_rng(0), size, face)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service that the command has started on the Ray of the tests. It must end by Ctrl-C, cleanly."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = tiny.write(folder / "c", temperature=1.4)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = command("serve", "--predict.checkpoint", checkpoint, "--serve.port", str(port), "--serve.max_mb", "5",
                    "--serve.max_queued", str(QUEUED))
    with ray_on(2), subprocess.Popen(words, cwd=folder, env=joining() | {"FER_RAY_SERVE_TOKEN": TOKEN}, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = []
        try:
            while not said or "Ctrl-C" not in said[-1]:
                said.append(process.stdout.readline())
                assert said[-1], "".join(said)
            yield SimpleNamespace(url=f"http://127.0.0.1:{port}", checkpoint=checkpoint, folder=folder, said=said)
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[0]
            assert process.returncode == 0 and "serve: ending\n" in rest, rest
            assert rest.splitlines()[-1] == f"result: http://127.0.0.1:{port}", rest
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5)
        finally:
            process.kill()


def ask(served, *images: Path) -> requests.Response:
    files = [("images", (image.name, image.read_bytes())) for image in images]
    return requests.post(f"{served.url}/predict", files=files, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)


def save(file: Path, pixels: np.ndarray) -> Path:
    cv2.imwrite(str(file), pixels)
    return file


def test_it_says_what_the_recognizer_says(served, tmp_path):
    """And the recognizer says what jobs/predict.py and jobs/evaluate.py say (test_predict.py)."""
    assert re.match(r"serve: /.+/c on CPUs in 1 process, where faces are found too\n", served.said[0])
    images = [save(tmp_path / f"{e}.png", draw(e)) for e in EXPRESSIONS[:3]]
    images.append(save(tmp_path / "two.jpg", np.hstack([draw("happiness"), draw("anger")])))
    answer = ask(served, *images).json()
    expected = Recognizer.load(served.checkpoint)(images)
    assert answer["calibrated"] and [one["image"] for one in answer["results"]] == [image.name for image in images]
    for found, wanted in zip(answer["results"], expected, strict=True):
        assert [tuple(face["box"]) for face in found["faces"]] == [face.box for face in wanted.faces] != []
        for one, other in zip(found["faces"], wanted.faces, strict=True):
            assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-6)
    assert len(expected[3].faces) == 2


def test_bad_uploads_have_a_reason_and_end_nothing(served, tmp_path):
    face, empty, huge, large = (tmp_path / name for name in ("face.png", "empty.jpg", "huge.png", "large.bin"))
    save(face, draw("fear"))
    empty.touch()
    Image.new("1", (10_000, 10_000)).save(huge)
    large.write_bytes(os.urandom(6_000_000))
    for image, status, reason in ((empty, 422, "empty.jpg: empty file"), (large, 413, "larger than 5 MB"),
                                  (huge, 422, "huge.png: too large: 100000000 px, at most 50000000 are decoded")):
        answer = ask(served, image)
        assert answer.status_code == status and reason in answer.json()["detail"]
    mixed = ask(served, empty, face).json()["results"]
    assert [one["reason"] for one in mixed] == ["empty file", None]
    assert requests.post(f"{served.url}/predict", files={"images": b""}, timeout=60).status_code == 401


def test_of_300_clients_at_once_each_gets_faces_or_a_reason(served, tmp_path):
    face = save(tmp_path / "face.png", draw("sadness"))
    with ThreadPoolExecutor(300) as clients:
        answers = list(clients.map(lambda _: ask(served, face), range(300)))
    statuses = collections.Counter(answer.status_code for answer in answers)
    assert statuses.keys() == {200, 503} and statuses[200] > QUEUED
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(f"max_queued_requests={QUEUED}" in one.text and one.headers["retry-after"] == "1" for one in refused)
    assert len({answer.text for answer in answers if answer.status_code == 200}) >= 1
    assert ask(served, face).status_code == 200 and requests.get(f"{served.url}/health", timeout=60).ok


def test_what_listens_to_the_network_asks_for_rays_token(served):
    """Serve's processes open a port for each other, on every address; it would run what it is sent."""
    answers = []
    for port in [port for port in test_connection.open_ports() if port.startswith("ray::ServeReplica")]:
        with grpc.insecure_channel(f"127.0.0.1:{port.rpartition(':')[2]}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as error:
                call(b"", timeout=10)
        answers.append(error.value.code())
    # a port that does not know the call is Ray's own, which asks for the token in other ways
    assert set(answers) - {grpc.StatusCode.UNIMPLEMENTED} == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.fixture(scope="module")
def browser(served):
    """With a camera that shows a drawn face, which moves a little."""
    from playwright.sync_api import sync_playwright

    film, still = served.folder / "camera.mjpeg", draw("happiness", (640, 640), 130)[60:540]
    film.write_bytes(b"".join(cv2.imencode(".jpg", np.roll(still, step, 1))[1].tobytes() for step in (0, 3, 6, 3)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                             args=[*BROWSER, f"--use-file-for-fake-video-capture={film}"])
        yield browser
        browser.close()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_shows_faces_of_the_camera_and_of_pictures(served, browser, tmp_path, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages, hosts = [], set()
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: hosts.add(re.split(r"[/:]", request.url)[0]
                                                if not request.url.startswith(served.url) else "ours"))
    tab.goto(served.url)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "secret"
    tab.keyboard.type(TOKEN)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Use the camera").click()
    box = tab.get_by_role("button", name=re.compile(r"Face 1: \w+ \d+ %"))
    box.wait_for(timeout=30_000)
    place, video = box.bounding_box(), tab.locator("video").bounding_box()
    assert 0.3 < place["height"] / video["height"] < 0.9  # the drawn face, and not the whole frame
    tab.get_by_text(re.compile(r"[\d.]+ frames/s · \d+ ms")).wait_for()
    shares = [int(text.removesuffix(" %")) for text in tab.locator(".bars dd:not(.track)").all_inner_texts()]
    assert len(shares) == 8 and 96 <= sum(shares) <= 104
    tab.get_by_role("button", name="Stop the camera").click()
    pictures = [save(tmp_path / "two.png", np.hstack([draw("happiness"), draw("anger")])), tmp_path / "not.png"]
    pictures[1].write_bytes(b"no picture")
    assert messages == []
    tab.get_by_label("Choose pictures").set_input_files(pictures)
    tab.get_by_text("2 faces in 2 pictures.").wait_for(timeout=30_000)
    tab.get_by_role("button", name=re.compile("Face 2: ")).press("Enter")
    assert tab.get_by_text("face 2 of 2").is_visible() and tab.get_by_text("not an image").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert hosts <= {"ours", "data", "blob"} and all("422" in message for message in messages)
    tab.close()


def test_it_says_when_somebody_else_ends_it(served):
    """Among the last, since it ends the service; the command goes on and can be ended."""
    from ray import serve

    from fer_ray.use import service

    assert service.trouble() == ""
    serve.delete(service.NAME)
    time.sleep(0.1)
    assert service.trouble() == "somebody else has ended it"


def test_networks_in_processes_of_their_own_say_the_same(served, tmp_path):
    """As on GPUs; in the place of the service that the test before has ended."""
    from ray import serve

    from fer_ray.use import service, web

    settings = web.Settings(page="", calibrated=True, token_sha256="", max_mb=5)
    job = service.Job(served.checkpoint, Search(FacesConfig()), "cpu", ServeConfig(), settings, joined=True)
    apart = service.Processes(services=1, cpus=0.5, networks=1, network_cpus=0.5)
    serve.run(service.application(job, apart), name=service.NAME)
    image = save(tmp_path / "two.png", np.hstack([draw("happiness"), draw("anger")]))
    faces = ask(served, image).json()["results"][0]["faces"]
    assert len(faces) == 2
    for found, wanted in zip(faces, Recognizer.load(served.checkpoint)(image).faces, strict=True):
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-6)
    assert sorted(serve.status().applications[service.NAME].deployments) == ["Network", "Service"]
