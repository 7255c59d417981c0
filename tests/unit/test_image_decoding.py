"""Every kind of image file: the right pixels, or one line that names the file."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engram.datasets import images, unlabeled
from engram.utils.errors import DataError

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
GRADIENT = np.random.RandomState(0).randint(0, 256, (6, 4, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def rgb(path: Path) -> np.ndarray:
    """The pixels of a file; both readers must agree on them."""
    pixels = images.read_image(path)
    height, width = pixels.shape[:2]
    assert np.array_equal(unlabeled.read([path], (3, height, width))[0].permute(1, 2, 0).numpy(), pixels)
    return pixels


def refusal(path: Path) -> str:
    """What both readers say of a file that they refuse."""
    said = []
    for read in (images.read_image, lambda file: unlabeled.read([file], (3, 4, 4))):
        with pytest.raises(DataError) as caught:
            read(path)
        said.append(str(caught.value))
    assert said[0] == said[1] and "\n" not in said[0] and said[0].startswith(f"{path}: ")
    return said[0]


def png(path: Path, header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of (width, height, depth, colour type) from raw rows, as Pillow cannot write all of them."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))
    return path


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.pgm"])
def test_16_bit_grey_becomes_256_equal_steps(tmp_path, name):
    path = tmp_path / name
    if name == "ramp.pgm":
        path.write_bytes(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        save(path, RAMP)
    values, counts = np.unique(rgb(path)[..., 0], return_counts=True)
    assert values.tolist() == list(range(256)) and set(counts) == {256}
    assert np.array_equal(rgb(path), np.repeat((RAMP >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_upper_8_bits(tmp_path):
    colour = np.random.RandomState(0).randint(0, 65536, (2, 3, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    assert np.array_equal(rgb(png(tmp_path / "x.png", (3, 2, 16, 2), rows)), colour >> 8)


def tiff(path: Path, bits: int, photometric: int, data: bytes) -> Path:
    """An uncompressed grey TIFF of 2x1 pixels."""
    tags = [
        (256, 4, 2), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, 1), (279, 4, len(data)),
    ]  # fmt: skip
    padded = data + b"\0" * (-len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory)
    return path


@pytest.mark.parametrize(
    ("bits", "photometric", "data", "expected"),
    [
        (16, 1, struct.pack("<HH", 0x1234, 0xFF00), [0x12, 0xFF]),
        (16, 0, struct.pack("<HH", 0x1234, 0xFF00), [0xED, 0x00]),  # white is zero
        (12, 1, bytes([0x12, 0x3F, 0xE0]), [0x12, 0xFE]),
        (8, 0, bytes([0x12, 0xFF]), [0xED, 0x00]),
    ],
)
def test_grey_tiffs_of_every_depth_and_polarity(tmp_path, bits, photometric, data, expected):
    assert rgb(tiff(tmp_path / "x.tif", bits, photometric, data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["float", "int", "pfm"])
def test_pixels_without_a_known_range_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "x.tiff"
    if kind == "pfm":
        path.write_bytes(b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.1, 0.9))
    else:
        save(path, RAMP.astype(np.float32 if kind == "float" else np.int32))
    mode = "I" if kind == "int" else "F"
    assert f"pixels of mode '{mode}' (32 bits or signed) have no known range" in refusal(path)


DRAWING = np.array([[0, 0, 0, 0, 0], [0, 255, 255, 128, 0]], dtype=np.uint8)  # alpha of black ink


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_a_black_drawing_on_transparent_is_black_on_white(tmp_path, name):
    pixels = np.zeros((2, 5, 4), dtype=np.uint8)
    pixels[..., 3] = DRAWING
    path = save(tmp_path / name, pixels, **({"lossless": True, "exact": True} if name == "x.webp" else {}))
    assert np.array_equal(rgb(path), np.repeat(255 - DRAWING[..., None], 3, axis=2))


def test_what_lies_under_alpha_does_not_show(tmp_path):
    hidden = np.dstack([GRADIENT, np.zeros((6, 4), np.uint8)])
    assert (rgb(save(tmp_path / "rgba.png", hidden)) == 255).all()
    assert (rgb(save(tmp_path / "la.png", hidden[..., [0, 3]])) == 255).all()
    whole = np.dstack([GRADIENT, np.full((6, 4), 255, np.uint8)])
    assert np.array_equal(rgb(save(tmp_path / "whole.png", whole)), GRADIENT)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_palettes_with_transparency_lie_on_white(tmp_path, name, transparency):
    if name == "x.gif":
        transparency = 0
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.save(tmp_path / name, transparency=transparency)
    assert rgb(tmp_path / name).tolist() == [[[255] * 3, [200, 0, 0]], [[200, 0, 0], [255] * 3]]


def test_a_transparent_colour_is_found_at_8_bits_and_refused_at_others(tmp_path):
    grey = png(tmp_path / "8.png", (2, 1, 8, 0), bytes([0, 7, 9]), (b"tRNS", struct.pack(">H", 7)))
    assert rgb(grey)[0, :, 0].tolist() == [255, 9]
    bit = png(tmp_path / "1.png", (2, 1, 1, 0), bytes([0, 0b01000000]), (b"tRNS", struct.pack(">H", 1)))
    assert rgb(bit)[0, :, 0].tolist() == [0, 255]
    for depth, row in ((4, bytes([0, 0x79])), (16, struct.pack(">BHH", 0, 7, 9))):
        path = png(tmp_path / "x.png", (2, 1, depth, 0), row, (b"tRNS", struct.pack(">H", 7)))
        assert "a transparent colour in a PNG of 'L;4'" in (said := refusal(path)) or "'I;16B'" in said


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path, name, orientation):
    upright = np.zeros((16, 24), dtype=np.uint8)
    upright[:8, :8] = 255  # a light corner, top left
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "x.webp" else {}
    path = save(tmp_path / name, np.ascontiguousarray(stored), exif=exif, **options)
    assert np.abs(rgb(path)[..., 0].astype(int) - upright).max() < 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as image_decoding sets it for programs
def test_damaged_exif_costs_the_orientation_alone(tmp_path):
    path = save(tmp_path / "x.jpg", GRADIENT, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert rgb(path).shape == (6, 4, 3)


def without_marker(content: bytes) -> bytes:
    start = content.index(b"\xff\xee")
    return content[:start] + content[start + 2 + struct.unpack(">H", content[start + 2 : start + 4])[0] :]


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_cmyk_is_converted_and_inverted_where_the_marker_says_so(tmp_path, name):
    inks = np.empty((16, 16, 4), dtype=np.uint8)
    inks[:] = (255, 0, 51, 51)
    path = save(tmp_path / name, inks, "CMYK")
    assert np.abs(rgb(path).astype(int) - [0, 204, 163]).max() <= 2
    if name == "x.jpg":
        assert b"Adobe" in path.read_bytes()
        path.write_bytes(without_marker(path.read_bytes()))
        assert "a CMYK JPEG without Adobe marker" in refusal(path)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.tiff", "x.png"])
def test_several_frames_are_refused_and_one_is_read(tmp_path, name):
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (0, 100, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert "holds several images (an animation or pages)" in refusal(tmp_path / name)
    frames[1].save(tmp_path / f"one-{name}")
    assert np.abs(rgb(tmp_path / f"one-{name}").astype(int) - 100).max() <= 2


def test_the_photograph_of_a_file_with_previews_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 100)]
    frames[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(rgb(tmp_path / "x.jpg").astype(int) - 10).max() <= 2


@pytest.mark.parametrize("name", ["x.bmp", "x.webp", "x.tif", "x.TIFF", "x.ppm", "x.PNG", "x.gif"])
def test_lossless_kinds_keep_every_pixel(tmp_path, name):
    path = save(tmp_path / name, GRADIENT, **({"lossless": True} if name == "x.webp" else {}))
    assert np.array_equal(rgb(path), GRADIENT)


@pytest.mark.parametrize("side", [9500, 20_000, 1_000_000])
def test_a_decompression_bomb_is_refused_before_its_pixels_take_memory(tmp_path, side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    path = png(tmp_path / "bomb.png", (side, side, 8, 0), b"\0" * 1000)
    assert "is beyond the 89,478,485 pixels" in refusal(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_a_file_damaged_anywhere_is_one_line_or_an_image(tmp_path, kind):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.tile(GRADIENT, (4, 4, 1))).save(stream, kind, exif=exif)
    content, path, draw = stream.getvalue(), tmp_path / "image.x", np.random.RandomState(0)
    for _ in range(100):
        damaged = bytearray(content[: draw.randint(len(content))] if draw.rand() < 0.5 else content)
        for position in draw.randint(0, min(len(damaged), 100), 3) if damaged else ():
            damaged[position] = draw.randint(256)
        path.write_bytes(damaged)
        try:
            assert images.read_image(path).shape[2] == 3
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            assert str(error).count(str(path)) == 1
    path.write_bytes(content[: len(content) // 2])
    assert re.search(r"not a readable image \(.+\); replace or remove it", refusal(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "x.png").endswith("x.png: no such file")
