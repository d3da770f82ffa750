"""The user's images, masks and maps of every mode and container, upright and with the right values."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.sampling.tasks.inputs import read_image, read_labels, read_mask, read_scalar_map
from ldm.errors import UserError
from tests.support.image_cases import BLOCK, Case, all_cases

SIZE = (2 * BLOCK, 3 * BLOCK)
FILES = [case for case in all_cases() if case.container != "rendered"]

sampled = pytest.mark.parametrize(
    "step", [17, pytest.param(1, marks=pytest.mark.slow)], ids=["every 17th", "all"]
)


def check(read: Callable[[], torch.Tensor], expected: np.ndarray | str, tolerance: float, case: Case) -> None:
    """Compare values, or the text of the error."""
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"task.map=.*{expected}"):
            read()
    else:
        assert np.abs(read().numpy().reshape(expected.shape) - expected).max() <= tolerance, case


@sampled
def test_every_kind_of_file_is_right_or_refused_with_one_sentence(tmp_path: Path, step: int) -> None:
    path, image = tmp_path / "file", tmp_path / "image.png"
    image.write_bytes(Case("RGB", "PNG").data())
    for case in FILES[::step]:
        path.write_bytes(case.data())
        tolerance, grey, mask = 2 * case.tolerance / 255 + 1e-6, case.grey_map(), case.mask()
        check(lambda: read_labels(str(path), "map", SIZE, 256), case.labels(), 0, case)
        expected = grey if isinstance(grey, str) else 2 * grey - 1
        check(lambda: read_scalar_map(str(path), "map", SIZE), expected, tolerance, case)
        if isinstance(mask, str):
            with pytest.raises(UserError, match=f"task.mask=.*{mask}"):
                read_mask(str(path), str(image), SIZE)
        else:
            white, clear = read_mask(str(path), str(image), SIZE)[0, 0].numpy(), np.abs(mask - 0.5) > 0.03
            assert (white[clear] == (mask >= 0.5)[clear]).all(), case
        if case.mode != "I":
            pixels = read_image(str(path), SIZE, 3)[0].permute(1, 2, 0).numpy()
            assert np.abs(pixels - (case.rgb() / 127.5 - 1)).max() <= tolerance, case


def test_a_mask_of_an_image_may_have_another_orientation(tmp_path: Path) -> None:
    for i, container, orientation in ((0, "JPEG", 6), (1, "PNG", 1)):
        case = Case("L", container, orientation)
        (tmp_path / str(i)).write_bytes(case.data())
    masks = [read_mask(str(tmp_path / m), str(tmp_path / i), SIZE) for m, i in (("0", "1"), ("1", "0"))]
    expected = torch.from_numpy(Case("L", "PNG").mask() >= 0.5).float()  # type: ignore[operator]
    assert all(torch.equal(mask[0, 0], expected) for mask in masks)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (3_000_000, 1), (1, 1), (3, 2)])
def test_an_image_of_any_shape_is_cropped_before_it_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 0, 51)).save(tmp_path / "a.png")
    Image.new("L", size, 255).save(tmp_path / "m.png")
    pixels = read_image(str(tmp_path / "a.png"), (512, 512), 3)
    assert pixels.shape == (1, 3, 512, 512)
    assert torch.allclose(pixels[0, :, 100, 200], torch.tensor([1, -1, -0.6]), atol=1e-6)
    assert read_mask(str(tmp_path / "m.png"), str(tmp_path / "a.png"), (512, 512)).all()


def test_white_strokes_on_a_transparent_layer_are_all_that_is_sampled(
    run_sample, input_files, tmp_path: Path
) -> None:
    original = np.array(Image.open(input_files["colours"]))
    strokes = np.full((*original.shape[:2], 4), 255, np.uint8)
    strokes[..., 3] = 0
    strokes[4:12, 4:20, 3] = 255
    file = BytesIO()
    Image.fromarray(strokes).save(file, "PNG")
    (tmp_path / "strokes.png").write_bytes(file.getvalue())
    overrides = ("task=inpaint", "task.image={colours}", f"task.mask={tmp_path}/strokes.png")
    status, err, images = run_sample("unconditional", *overrides)
    assert status == 0, err
    is_sampled = strokes[..., 3] > 0
    for image in images.values():
        assert np.array_equal(image[~is_sampled], original[~is_sampled])
        assert not np.array_equal(image[is_sampled], original[is_sampled])
