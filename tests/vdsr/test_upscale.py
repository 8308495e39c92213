"""The Upscaler: any image in, the same kind out, whatever the tile."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vdsr import Upscaler, checkpoint, native
from vdsr.device import DeviceError
from vdsr.errors import ImageEmpty, ImageTruncated, ImageUnreadable, ImageUnsupported, Interrupted
from vdsr.model import VDSR
from vdsr.resize import bicubic
from vdsr.upscale import SmallPicture

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(device="cpu", tile=64)


@pytest.fixture(scope="module")
def zero_residual(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    """An upscaler whose network adds nothing: what is left is bicubic."""
    model = VDSR()
    with torch.no_grad():
        model.layers[-1].weight.zero_()
    path = tmp_path_factory.mktemp("weights") / "zero.safetensors"
    checkpoint.save(model, path, version="zero")
    return Upscaler(path, device="cpu")


def picture(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (9, 7), (31, 33, 2), (20, 24, 3), (40, 1, 4)])
@pytest.mark.parametrize("scale", [1, 2, 2.37, 4])
def test_shape_dtype_and_kind_are_kept(upscaler: Upscaler, shape: tuple, dtype: type, scale: float) -> None:
    image = picture(*shape, dtype=dtype)
    size = tuple(int(np.ceil(round(n * scale, 6))) for n in shape[:2])

    result = upscaler.upscale(image, scale)

    assert result.dtype == dtype
    assert result.shape == (*size, *shape[2:])


@pytest.mark.parametrize("tile", [16, 50, 64, 200])
def test_tiles_give_what_the_whole_image_gives(tile: int) -> None:
    y = bicubic(RNG.random((75, 81)), scale=2)

    whole = Upscaler(device="cpu", engine="torch", precision="fp32", tile=10_000).sharpen(y)
    tiled = Upscaler(device="cpu", engine="torch", precision="fp32", tile=tile).sharpen(y)

    assert np.abs(whole - tiled).max() < 1e-6  # oneDNN sums in another order for another tile width


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (41, 41), (150, 203)])
def test_the_network_of_the_upscaler_is_the_model_itself(engine: str, size: tuple[int, int]) -> None:
    y = RNG.random(size).astype(np.float32)
    model, _ = checkpoint.load()

    with torch.no_grad():
        expected = model.double()(torch.from_numpy(y).double()[None, None])[0, 0].numpy()

    assert np.abs(Upscaler(device="cpu", engine=engine, precision="fp32").sharpen(y) - expected).max() * 255 < 0.01


@pytest.mark.skipif(native.library() is None, reason="there is no compiled code")
@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize(("strip", "band"), [(1, 64), (160, 1), (170, 7), (4096, 1000)])
def test_the_compiled_code_gives_the_same_bits_in_any_pieces(
    strip: int, band: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler, y = Upscaler(device="cpu", precision=precision), RNG.random((101, 203)).astype(np.float32)
    expected = upscaler.sharpen(y)

    monkeypatch.setattr("vdsr.upscale.STRIP", strip)
    monkeypatch.setattr("vdsr.upscale.BAND_PIXELS", 1)
    monkeypatch.setattr("vdsr.upscale.BLOCK", band)  # the least

    assert np.array_equal(upscaler.sharpen(y), expected)


@pytest.mark.skipif(native.library() is None, reason="there is no compiled code")
def test_the_compiled_code_gives_the_same_bits_with_any_number_of_threads(upscaler: Upscaler) -> None:
    y, before, found = RNG.random((50, 60)).astype(np.float32), torch.get_num_threads(), []

    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(upscaler.sharpen(y))
    torch.set_num_threads(before)

    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_an_engine_that_is_not_here_is_refused_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdsr.native.libraries", list)

    with pytest.raises(DeviceError, match=r"native engine is not here for cpu in auto: .* C\+\+ compiler"):
        Upscaler(device="cpu", engine="native")


@pytest.mark.parametrize(("flags", "precision"), [("avx512_bf16", "bf16"), ("avx512f", "fp32")])
def test_without_compiled_code_torch_computes_in_bf16_where_the_processor_does(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdsr.native.libraries", list)
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: f"flags : {flags}")

    assert Upscaler(device="cpu").engine.name == f"torch cpu {precision}"
    assert Upscaler(device="cpu", precision="fp32").engine.name == "torch cpu fp32"


def test_without_a_residual_it_is_bicubic_of_every_channel(zero_residual: Upscaler) -> None:
    image = picture(30, 34, 3)
    expected = np.clip(np.round(bicubic(image.transpose(2, 0, 1).astype(float), scale=3)), 0, 255)

    result = zero_residual.upscale(image, 3).transpose(2, 0, 1)

    assert np.abs(result - expected).max() <= 1  # through YCbCr and back in fp32
    assert (result != expected).mean() < 0.001


def test_gray_is_treated_as_colour_without_chroma(upscaler: Upscaler) -> None:
    gray = picture(25, 35)

    color = upscaler.upscale(np.dstack([gray] * 3), 2)

    assert np.array_equal(color, np.dstack([upscaler.upscale(gray, 2)] * 3))


def test_sixteen_bits_are_not_cut_to_eight(upscaler: Upscaler) -> None:
    ramp = np.linspace(20_000, 21_000, 64 * 64).reshape(64, 64).astype(np.uint16)

    assert len(np.unique(upscaler.upscale(ramp, 2))) > 500


def test_opaque_alpha_stays_exactly_opaque(upscaler: Upscaler) -> None:
    image = picture(20, 20, 4)
    image[..., 3] = 255

    result = upscaler.upscale(image, 2)

    assert (result[..., 3] == 255).all()
    assert np.array_equal(result[..., :3], upscaler.upscale(image[..., :3], 2))


@pytest.mark.parametrize("hidden", [0, 255])
def test_a_cut_out_has_no_halo_whatever_colour_is_hidden(upscaler: Upscaler, hidden: int) -> None:
    image = np.full((40, 40, 4), hidden, np.uint8)
    image[..., 3] = 0
    image[10:30, 10:30] = (200, 60, 30, 255)

    result = upscaler.upscale(image, 2)
    visible = result[result[..., 3] > 0][:, :3].astype(int)

    assert np.abs(visible - [200, 60, 30]).max() <= 2


@pytest.mark.parametrize(
    ("mode", "result"),
    [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("I;16", "I;16"), ("1", "L"), ("P", "RGB")],
)
def test_pillow_images_come_back_as_pillow_images(upscaler: Upscaler, mode: str, result: str) -> None:
    source = Image.fromarray(picture(12, 15, 3))
    image = source.convert("L").convert("I;16") if mode == "I;16" else source.convert(mode)

    upscaled = upscaler.upscale(image, 2)

    assert (upscaled.mode, upscaled.size) == (result, (30, 24))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "F", "I"])
def test_modes_that_would_lose_something_are_refused(upscaler: Upscaler, mode: str) -> None:
    with pytest.raises(ImageUnsupported, match=mode):
        upscaler.upscale(Image.new(mode, (8, 8)), 2)


@pytest.mark.parametrize("scale", [0.99, 0, -2, float("nan")])
def test_a_scale_below_one_is_refused(upscaler: Upscaler, scale: float) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        upscaler.upscale(picture(8, 8), scale)


@pytest.mark.parametrize("shape", [(0, 8), (8, 8, 5), (8,), (2, 8, 8, 3)])
def test_arrays_of_another_shape_are_refused(upscaler: Upscaler, shape: tuple) -> None:
    with pytest.raises(ValueError, match="shape"):
        upscaler.upscale(np.zeros(shape, np.uint8), 2)


def test_float_arrays_are_refused_rather_than_guessed(upscaler: Upscaler) -> None:
    with pytest.raises(ValueError, match="uint8 or uint16"):
        upscaler.upscale(np.zeros((8, 8)), 2)


def test_what_is_no_image_is_refused_by_name(upscaler: Upscaler) -> None:
    with pytest.raises(TypeError, match="cannot upscale bytes; give a PIL image, a path or a NumPy array"):
        upscaler.upscale(b"cat.jpg", 2)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_gives_the_picture_in_that_file_upright_and_in_its_colours(
    upscaler: Upscaler, tmp_path: Path, kind: type
) -> None:
    source = Image.fromarray(picture(12, 15, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    source.save(tmp_path / "사진.png", exif=exif, icc_profile=profile)

    upscaled = upscaler.upscale(kind(tmp_path / "사진.png"), 2)

    expected = upscaler.upscale(np.rot90(np.asarray(source), -1).copy(), 2)
    assert np.array_equal(np.asarray(upscaled), expected)
    assert upscaled.info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ImageEmpty, "empty"),
        (b"no picture at all", ImageUnreadable, "a.png is no picture, or damaged .no format that Pillow knows"),
        ("half", ImageTruncated, "a.png ends before its pixels do"),
        ("bomb", ImageUnsupported, "a.png.*MAX_IMAGE_PIXELS"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_with_the_reason(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | str, error: type, message: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own: the workers' code has a limit of its own
    stream = io.BytesIO()
    Image.fromarray(picture(40, 40, 3)).save(stream, "PNG")
    whole = stream.getvalue()
    header = whole[8:16] + struct.pack(">II", 30_000, 30_000) + whole[24:29]
    made = {
        "half": whole[: len(whole) // 2],
        "bomb": whole[:8] + header + struct.pack(">I", crc32(header[4:])) + whole[33:],
    }
    (tmp_path / "a.png").write_bytes(made[data] if isinstance(data, str) else data)

    with pytest.raises(error, match=message):
        upscaler.upscale(tmp_path / "a.png", 2)


def test_a_path_without_a_file_is_told_as_python_tells_it(upscaler: Upscaler, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        upscaler.upscale(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError):
        upscaler.upscale(str(tmp_path))


def test_the_caller_can_stop_between_tiles(upscaler: Upscaler) -> None:
    seen = []

    def stop_at_third() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        upscaler.upscale(picture(400, 400), 2, on_tile=stop_at_third)
    assert len(seen) == 3


def test_bf16_on_request_stays_close_to_fp32(upscaler: Upscaler) -> None:
    y = bicubic(RNG.random((40, 40)), scale=2)

    error = Upscaler(device="cpu", precision="bf16").sharpen(y) - upscaler.sharpen(y)

    assert 0 < np.sqrt((error**2).mean()) < 0.01


def test_devices_and_precisions_that_are_not_here_are_named() -> None:
    for name in ("cuda:99", "tpu"):
        with pytest.raises(DeviceError, match=name):
            Upscaler(device=name)
    with pytest.raises(DeviceError, match="fp8"):
        Upscaler(precision="fp8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_what_the_cpu_gives(upscaler: Upscaler) -> None:
    y = bicubic(RNG.random((100, 120)), scale=2)

    assert np.abs(Upscaler(device="cuda", precision="fp32").sharpen(y) - upscaler.sharpen(y)).max() < 1e-5


def test_the_shipped_weights_beat_bicubic_on_a_real_photograph() -> None:
    from vdsr.evaluate import score_degraded

    path = Path(__file__).parents[2] / "examples" / "photos" / "rocket.jpg"
    pixels = np.asarray(Image.open(path).convert("RGB"))

    assert score_degraded(Upscaler(device="cpu"), pixels, 2).gain_db > 1


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (41, 33, 4)])
def test_small_pictures_that_go_through_together_score_as_each_alone(shape: tuple[int, ...]) -> None:
    from vdsr.evaluate import Degraded, score_degraded

    upscaler = Upscaler(device="cpu")
    images = [np.random.default_rng(n).integers(0, 256, shape, np.uint8) for n in range(3)]

    degraded = [Degraded(image, 2) for image in images]
    restored = upscaler.sharpen_alike(np.stack([each.y for each in degraded]))
    together = [each.compare(y, with_ssim=False) for each, y in zip(degraded, restored, strict=True)]

    assert together == [score_degraded(upscaler, image, 2, with_ssim=False) for image in images]


@pytest.mark.parametrize("scale", [1, 2, 2.37])
@pytest.mark.parametrize(("shape", "dtype"), [((40, 51), np.uint8), ((40, 51, 3), np.uint8), ((9, 90, 3), np.uint16)])
def test_small_pictures_that_go_through_together_come_out_as_each_alone(
    upscaler: Upscaler, shape: tuple[int, ...], dtype: type[np.integer], scale: float
) -> None:
    images = [np.random.default_rng(n).integers(0, np.iinfo(dtype).max, shape, dtype) for n in range(3)]

    small = [SmallPicture(image, scale) for image in images]
    sharpened = upscaler.sharpen_alike(np.stack([each.y for each in small]))

    for image, each, y in zip(images, small, sharpened, strict=True):
        assert np.array_equal(each.finish(y), upscaler.upscale(image, scale))


def test_a_small_picture_has_no_alpha() -> None:
    with pytest.raises(ValueError, match="without alpha"):
        SmallPicture(np.zeros((4, 4, 4), np.uint8), 2)
