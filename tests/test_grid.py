"""Labelled grids of images."""

import pytest
import torch
from PIL import Image

from ldm.grid import LABEL_WIDTH, MARGIN, labelled_grid, to_pil


def test_to_pil_rounds_and_clamps():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.0039, 1.0, 9.0]).repeat(3, 1).view(3, 1, 6)
    assert list(to_pil(x).getdata(0)) == [0, 0, 128, 128, 255, 255]
    assert to_pil(torch.rand(3, 5, 7)).size == (7, 5)


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (5, (0, 1, 2))])
def test_at_most_three_channels_are_shown(channels, shown):
    x = 2 * torch.rand(channels, 5, 7) - 1
    assert to_pil(x).tobytes() == to_pil(x[list(shown)]).tobytes()


def test_to_pil_inverts_the_stages_mapping_of_uint8():
    stored = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    assert list(to_pil(stored.float() / 127.5 - 1).getdata(1)) == list(range(256))


def test_every_image_is_at_its_position():
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255)]]
    rows = [(f"row {i}", [Image.new("RGB", (8, 6), c) for c in row]) for i, row in enumerate(colours)]
    sheet = labelled_grid(rows, scale=2)
    assert sheet.size == (LABEL_WIDTH + 2 * (16 + MARGIN), 2 * (12 + MARGIN) + MARGIN)
    for i, row in enumerate(colours):
        for j, colour in enumerate(row):
            left, top = LABEL_WIDTH + j * (16 + MARGIN), MARGIN + i * (12 + MARGIN)
            for corner in ((left, top), (left + 15, top + 11)):
                assert sheet.getpixel(corner) == colour
    background = sheet.getpixel((0, 0))
    assert sheet.getpixel((LABEL_WIDTH + 16 + MARGIN, MARGIN + 12 + MARGIN)) == background, "no fourth image"
    labels = sheet.crop((0, 0, LABEL_WIDTH, sheet.height))
    assert len(labels.getcolors()) > 1, "the labels are rendered"


def test_long_labels_do_not_overlap_the_images():
    label = "a small blue square left of a large yellow triangle on a black background"
    sheet = labelled_grid([(label, [Image.new("RGB", (64, 64))])])
    assert sheet.size == (LABEL_WIDTH + 64 + MARGIN, 64 + 2 * MARGIN)
    column = sheet.crop((LABEL_WIDTH - 2, 0, LABEL_WIDTH, sheet.height))
    assert len(column.getcolors()) == 1, "no label reaches the images"
