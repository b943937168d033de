"""`Recognizer`: a trained network on photographs, in five lines of Python and without Ray."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, overload

from PIL import Image

from fer_ray.data import pixels
from fer_ray.data_config import FacesConfig
from fer_ray.use import drawing, footage, networks, photographs, tracks, video
from fer_ray.use.photographs import Crop, Cutter, Photograph, Search
from fer_ray.use.recognition import Face, Frame, Network, Recognition, Recognitions

CHUNK = 32  # photographs whose faces are scored together, while those of as many others are being found


class Recognizer:
    """Says the expression of the faces in photographs.

    ::

        recognizer = Recognizer.load("models/mine")
        result = recognizer("photograph.jpg")
        print(result.to_pandas())
        recognizer.annotate("photograph.jpg").save("annotated.jpg")

    It serves one thread at a time; in itself it finds faces by one thread a core.
    """

    def __init__(self, network: Network, search: Search, temperature: float | None):
        """`temperature`: that the network's probabilities are calibrated by; None if there is none."""
        self.network, self.search, self.temperature = network, search, temperature
        self.cutter = Cutter(search)
        self._pool = ThreadPoolExecutor(os.cpu_count())  # kept, since each thread loads a detector of its own

    @classmethod
    def load(cls, source: str | os.PathLike, name: str = "", *, faces: Literal["all", "largest"] = "all",
             tilt: bool = False, min_face: int = 0, device: Literal["auto", "cpu", "cuda"] = "auto",
             faces_config: FacesConfig | None = None) -> Recognizer:
        """The network of a checkpoint, with the temperature that is stored with it, or of an exported ONNX file.

        Args:
            source: folder or s3:// URI of a checkpoint, or of a storage; or a file NAME.onnx that jobs/export.py
                wrote, which runs without torch.
            name: of a run in the storage; may be left out if the storage holds only one.
            faces: all faces of a photograph, or the largest alone, which is found faster.
            tilt: where no face is found, turn the photograph by 30 degrees to either side and search again.
            min_face: smallest side of a face in px.
            device: where the network computes; `auto`: on a GPU if this machine has one. ONNX files run on the CPU.
            faces_config: how faces are found and cut; by default as the network's training images were.

        Raises: checkpoints.CheckpointError if there is no whole checkpoint of this program's eight classes;
            onnx_model.OnnxError if a file cannot be used, or is to run on a GPU; faces.DetectorError;
            storage.StorageError.
        """
        used = networks.find(os.fspath(source), name)
        network = networks.load(used, device)
        about = networks.describe(used, network)
        if about.temperature is None:
            warnings.warn(f"{used}: {networks.NOT_CALIBRATED}", stacklevel=2)
        return cls(network, Search(faces_config or about.faces, faces, tilt, min_face), about.temperature)

    @overload
    def __call__(self, images: Photograph) -> Recognition: ...

    @overload
    def __call__(self, images: Iterable[Photograph]) -> Recognitions: ...

    def __call__(self, images: Photograph | Iterable[Photograph]) -> Recognition | Recognitions:
        """The faces of a photograph, or of each of several, whose faces go through the network in common batches.

        Args:
            images: a path or URI, the bytes of an image file, an image of Pillow, or an array, uint8 [H, W] (grey) or
                [H, W, 3] (RGB); or a list of any of these.

        Returns: the faces of a photograph, the largest first, or the reason why there is none; of several, in their
            order.

        Raises: ValueError or TypeError for an array or object that can be no image; storage.StorageError if storage
            does not answer. An image that is missing or damaged is no error: its result has the reason.
        """
        if isinstance(images, Photograph):
            return next(self.iterate([images]))
        return Recognitions(self.iterate(images))

    def iterate(self, images: Iterable[Photograph]) -> Iterator[Recognition]:
        """As a call with a list, but one result after the other: memory stays the same, however many there are."""
        numbered = enumerate(images)
        waiting: deque[list[Future]] = deque()
        ahead = 1 if self.network.shares_cpus else 0  # chunks whose faces are found while another is scored
        while chunk := list(itertools.islice(numbered, CHUNK)):
            waiting.append([self._pool.submit(self._cut, image, number) for number, image in chunk])
            if len(waiting) > ahead:
                yield from self._score(waiting.popleft())
        while waiting:
            yield from self._score(waiting.popleft())

    def video(self, path: str | os.PathLike, every: float = 0.2, smooth: float = 0.0) -> Iterator[Frame]:
        """The faces in the frames of a video, one frame after the other: memory stays the same, however long it is.

        ::

            for frame in recognizer.video("film.mp4"):
                print(frame.time, {number: face.expression for number, face in frame.faces.items()})

        Whole frames are searched for faces about once a second; in between each face is looked for where it was.

        Args:
            path: of a video file, local or s3://.
            every: seconds between two frames that are looked at; 0: all are.
            smooth: time constant in seconds of an exponential moving average over each face's probabilities; 0: none.

        Returns: the frames that were looked at. A face keeps its number as long as it is seen.

        Raises: footage.VideoError if it is no video; storage.StorageError. Damaged frames are left out with a warning.
        """
        if every < 0 or smooth < 0:
            raise ValueError(f"every and smooth must not be negative, and not {every} and {smooth}")
        return self._frames(footage.Footage(photographs.name_of(path)), every, smooth)

    def _frames(self, opened: footage.Footage, every: float, smooth: float) -> Iterator[Frame]:
        with opened:
            seen = video.Seen()
            frames = video.score(opened, self.cutter, self.network, video.Grid(every), seen)
            yield from tracks.follow(frames, every, smooth)
            if seen.damaged:
                warnings.warn(f"{opened.uri}: {seen.damaged} damaged frames were left out", stacklevel=2)

    def annotate(self, image: Photograph, recognition: Recognition | None = None) -> Image.Image:
        """A copy of the photograph with the box, expression and probability of each face drawn on it.

        Args:
            image: one, as of a call.
            recognition: what a call said of it, so that nothing is computed again.

        Returns: an RGB image of Pillow.

        Raises: pixels.ImageError if the image cannot be read; as a call.
        """
        picture = photographs.load(image)
        return drawing.annotate(picture, dict(enumerate((recognition or self(picture)).faces)))

    def _score(self, chunk: list[Future]) -> Iterator[Recognition]:
        """`chunk`: what `_cut` makes of each photograph."""
        cut = [photograph.result() for photograph in chunk]
        scores = iter(self.network.probabilities([crop.pixels for _, crops, _ in cut for crop in crops]))
        for title, crops, reason in cut:
            found = tuple(Face.of(crop.box, crop.score, crop.angle, crop.whole, next(scores)) for crop in crops)
            yield Recognition(title, found, reason)

    def _cut(self, image: Photograph, number: int) -> tuple[str, list[Crop], str | None]:
        title = photographs.name_of(image) if isinstance(image, str | os.PathLike) else f"#{number}"
        try:
            return title, self.cutter.crops(photographs.load(image)), None
        except pixels.ImageError as error:
            return title, [], str(error)
