"""Every image that the manifest can name gives pixels, or one documented exception with the reason."""

import io
import struct

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, JpegImagePlugin

from fer_ray import storage
from fer_ray.data import pixels

ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # SHORT 6: turn by 90 degrees


def encode(image: Image.Image, form="PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of the given entries: tag, type (2 is ASCII, 3 is SHORT), count, and four bytes of value or offset."""
    entries = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"just text", "not an image"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"../../blobs/ab", "copied as text"),
    (encode(Image.new("L", (200, 200)), "JPEG")[:300], "damaged|not an image"),
    (encode(Image.new("L", (1, 1))), "too small"), (encode(Image.new("1", (20000, 20000))), "too large")])
def test_unusable_bytes_say_why(content, reason):
    with pytest.raises(ValueError, match=reason):
        pixels.decode(content)


@pytest.mark.parametrize(("mode", "form", "shape"), [
    ("L", "PNG", (30, 40)), ("RGB", "JPEG", (30, 40, 3)), ("CMYK", "JPEG", (30, 40, 3)), ("P", "GIF", (30, 40, 3)),
    ("RGBA", "PNG", (30, 40, 3)), ("I;16", "PNG", (30, 40)), ("1", "PNG", (30, 40)), ("LA", "PNG", (30, 40))])
def test_every_mode_becomes_grey_or_rgb(mode, form, shape):
    found = pixels.decode(encode(Image.new(mode, (40, 30)), form))
    assert found.shape == shape and found.dtype == np.uint8


RAMP = np.linspace(0, 1, 1600).reshape(40, 40)
COLOURS = np.stack([RAMP, RAMP * 0, RAMP], -1)  # in the order of OpenCV, blue first
DEEP = [(values * (2**bits - 1)).astype(np.uint16) for values in (RAMP, COLOURS) for bits in (8, 10, 12, 16)]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jp2"])
def test_a_picture_of_fewer_bits_than_its_file_has_room_for_is_not_black(suffix):
    for values in DEEP:
        found = pixels.decode(cv2.imencode(suffix, values)[1].tobytes())
        expected = np.rint((RAMP if values.ndim == 2 else COLOURS[..., ::-1]) * 255)
        assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1


def test_floating_point_and_32_bit_pictures_are_scaled_by_their_range():
    for values, top in ((RAMP, 1.0), (RAMP * 1.02, 1.0), (RAMP * 255, 255.0), (RAMP * 65535, 65535.0)):
        found = pixels.decode(cv2.imencode(".tiff", values.astype(np.float32))[1].tobytes())
        assert np.abs(found - np.minimum(values / top * 255, 255)).max() <= 1
    assert pixels.decode(cv2.imencode(".tiff", (RAMP * 4095).astype(np.int32))[1].tobytes()).max() == 255


@pytest.mark.parametrize(("values", "reason"), [
    (RAMP.astype(np.uint8) + (RAMP > 0.5), "nearly black: pixels up to 2 of 255"),
    ((RAMP * 7).astype(np.uint16), "nearly black: pixels up to 7 of 255"),
    ((RAMP * 1e6).astype(np.int32), r"pixels from 0 to 1e\+06; right is 0 to 1, or 0 to 65535 at most"),
    ((RAMP * 200 - 100).astype(np.float32), "pixels from -100 to 100"),
    (COLOURS.astype(np.float32), "damaged TIFF image, .*: not read; save it as PNG or JPEG")],
    ids=["ones and twos", "three bits", "20 bits", "negative", "floating point colours"])
def test_a_picture_whose_depth_nobody_knows_is_no_black_one(values, reason):
    with pytest.raises(pixels.ImageError, match=reason):
        pixels.decode(cv2.imencode(".tiff", values)[1].tobytes())


@pytest.mark.parametrize(("start", "name"), [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x18ftypmif1", "HEIC"),
                                             (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\xff\x0a", "JPEG XL")])
def test_a_format_that_is_not_read_is_named(start, name):
    with pytest.raises(pixels.ImageError, match=f"{name}: not read; save it as PNG or JPEG"):
        pixels.decode(start + bytes(100))


def test_exif_orientation_is_applied():
    upright = np.zeros((40, 30, 3), np.uint8)
    upright[:10] = 255  # a bright strip along the top
    for value, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
                        (8, Image.Transpose.ROTATE_270)):
        stored = Image.fromarray(upright).transpose(turn)
        tag = (0x0112, 3, 1, struct.pack("<HH", value, 0))
        found = pixels.decode(encode(stored, "JPEG", exif=exif(tag)))
        assert found.shape == (40, 30, 3) and found[:8].min() > 200 and found[12:].max() < 50


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tag", [(0x011A, 2, 4, b"ab\0\0"), (0x0213, 7, 1, b"ab\0\0"), (0x014A, 2, 1, b"ab\0\0"),
                                 (0x010F, 2, 9999, bytes(4)), (0x8769, 2, 4, b"ab\0\0")], ids=lambda tag: hex(tag[0]))
def test_a_wrongly_typed_exif_tag_hides_no_picture(tag):
    """Pillow's own `exif_transpose` raises TypeError or struct.error, or warns, at such a tag."""
    content = encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif(ORIENTATION, tag))
    assert pixels.decode(content).shape == (40, 30, 3)  # and its orientation is still applied


def test_an_orientation_that_is_none_counts_as_upright():
    for tag in ((0x0112, 2, 4, b"six\0"), (0x0112, 3, 1, bytes([99, 0, 0, 0])), (0x0112, 99, 1, bytes(4))):
        content = encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif(tag))
        assert pixels.decode(content).shape == (30, 40, 3)


@pytest.mark.parametrize("error", [TypeError("'int' object is not subscriptable"), struct.error("unpack requires 4"),
                                   SyntaxError("broken PNG"), ZeroDivisionError(), EOFError(), OverflowError("big"),
                                   MemoryError(), Image.DecompressionBombError("no number"), RecursionError("deep"),
                                   cv2.error("resize"), AssertionError()], ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_the_reason_of_that_image(tmp_path, monkeypatch, error):
    def fails(self):
        raise error

    (tmp_path / "a.jpg").write_bytes(encode(Image.new("L", (40, 30)), "JPEG"))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fails)
    with pytest.raises(pixels.ImageError, match="damaged image: .|too large") as raised:
        pixels.load(str(tmp_path / "a.jpg"))
    assert "\n" not in str(raised.value)


def test_damaged_files_of_every_format_are_images_or_have_a_reason():
    """Truncated, and with single bytes changed: real damage in place of invented exceptions."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8))
    for form in pixels.FORMATS:
        whole = np.frombuffer(encode(picture, form), np.uint8)
        for _ in range(60):
            damaged = whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole.copy()
            if len(damaged) == len(whole):
                damaged[rng.integers(0, min(len(whole), 300), 4)] = rng.integers(0, 256, 4)
            try:
                assert pixels.decode(damaged.tobytes()).dtype == np.uint8
            except pixels.ImageError as error:
                assert str(error)


def test_files_and_rows_that_are_not_there_are_reasons_and_an_outage_is_none(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("1 2 3\n")
    pq.write_table(pa.table({"image": [b"x", None]}), tmp_path / "t.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:40])
    for name in ("none.png", "", "t.csv#row=2,bytes=0-5,column=7", "t.csv#row=2,bytes=90-99,column=0",
                 "t.parquet#row=9,column=image", "t.parquet#row=0,column=other", "t.parquet#row=1,column=image",
                 "none.parquet#row=0,column=image", "cut.parquet#row=0,column=image"):
        with pytest.raises(pixels.ImageError, match="cannot be read|damaged row|holds NoneType"):
            pixels.load(f"{tmp_path}/{name}")

    def outage(uri):
        raise storage.StorageError(f"{uri}: no answer")

    monkeypatch.setattr(storage, "read_bytes", outage)
    with pytest.raises(storage.StorageError, match="no answer"):
        pixels.load("s3://bucket/a.png")


def test_pixels_that_are_no_numbers_are_refused():
    values = np.full((20, 20), np.nan, np.float32)
    with pytest.raises(pixels.ImageError, match="not finite"):
        pixels.decode(encode(Image.fromarray(values), "TIFF"))
