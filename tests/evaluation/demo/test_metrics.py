"""Rendered scenes satisfy every metric, those of other conditions do not; values of hand-made cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.data.demo.drawing import SIZES, draw
from ldm.data.demo.maps import boxes, depth, kind_index, segmentation
from ldm.data.demo.scenes import DemoScenes, caption
from ldm.data.fields.degradations import Downsampled, edge_map
from ldm.evaluation.demo import metrics

N = 24


@pytest.fixture(scope="module")
def batch():
    source, rows = DemoScenes("val", N), []
    for i in range(N):
        scene, places = source.scene(i)
        image = torch.from_numpy(np.array(source[i].image)).permute(2, 0, 1)
        padded_boxes = torch.full((2, 5), -1.0)
        padded_boxes[: len(places)] = torch.tensor(boxes(scene, places))
        rows.append(
            {
                "image": image,
                "label": torch.tensor(kind_index(scene.things[0])),
                "segmentation": torch.from_numpy(segmentation(scene, places)),
                "depth": torch.from_numpy(depth(scene, places)).float()[None] / 127.5 - 1,
                "edges": edge_map(image),
                "boxes": padded_boxes,
                "small": Downsampled(4)({"image": image}, i)["small"],
            }
        )
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    batch["mask"] = torch.zeros(N, 1, 64, 64, dtype=torch.uint8)
    batch["mask"][:, :, 20:40, 10:50] = 255
    return {**batch, "caption": [caption(source.scene(i)[0]) for i in range(N)]}


def images(batch):
    return batch["image"].float() / 127.5 - 1


@pytest.mark.parametrize(
    ("metric", "minimum"),
    [
        (metrics.CaptionAccuracy(), 1.0),
        (metrics.ClassAccuracy(), 1.0),
        (metrics.BoxAccuracy(), 1.0),
        (metrics.IsScene(), 1.0),
        (metrics.MapIoU(), 0.93),
        (metrics.DepthIoU(), 0.9),
        (metrics.EdgeMatch(), 1.0),
    ],
)
def test_rendered_scenes_pass(metric, minimum, batch) -> None:
    assert metric(images(batch), batch).min() >= minimum


@pytest.mark.parametrize(
    ("metric", "maximum"),
    [
        (metrics.CaptionAccuracy(), 0.1),
        (metrics.ClassAccuracy(), 0.4),
        (metrics.BoxAccuracy(), 0.1),
        (metrics.MapIoU(), 0.6),
        (metrics.DepthIoU(), 0.6),
        (metrics.EdgeMatch(), 0.6),
    ],
)
def test_scenes_of_other_conditions_do_not(metric, maximum, batch) -> None:
    assert metric(images(batch).roll(1, 0), batch).mean() <= maximum


def test_depth_is_read_from_the_sizes(batch) -> None:
    """Exact images score near 1, with every size swapped they score low."""
    exact = metrics.DepthIoU()(images(batch), batch).mean()
    source, swapped = DemoScenes("val", N), {"small": "large", "large": "small"}
    rows = []
    for i in range(N):
        scene, places = source.scene(i)
        things = tuple(replace(thing, size=swapped[thing.size]) for thing in scene.things)
        spots = [replace(p, across=SIZES[t.size]) for p, t in zip(places, things, strict=True)]
        image = draw(replace(scene, things=things), spots)
        rows.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    swapped_iou = metrics.DepthIoU()(torch.stack(rows).float() / 127.5 - 1, batch)
    assert exact > 0.95 and swapped_iou.max() < 0.6


def test_depth_ignores_colours(batch) -> None:
    """Objects of several colours, with a dot in a corner, keep their depth."""
    mottled = images(batch).clone()
    objects = (metrics.colour_map(mottled) > 0)[:, None].expand(-1, 3, -1, -1)
    red, blue = (torch.tensor(rgb)[:, None, None] / 127.5 - 1 for rgb in ((220, 40, 40), (40, 80, 220)))
    checks = (torch.arange(64)[:, None] // 3 + torch.arange(64) // 3) % 2 == 0
    mottled = torch.where(objects, torch.where(checks, red, blue), mottled)
    mottled[:, :, :2, :2] = red
    assert metrics.DepthIoU()(mottled, batch).mean() > 0.95


def test_noise_is_no_scene(batch) -> None:
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metrics.IsScene()(noise, batch).sum() == 0


def test_only_errors_under_the_mask_count(batch) -> None:
    mask = batch["mask"] > 127
    wrong = torch.where(mask, images(batch), 0.0)
    assert metrics.MaskedError()(wrong, batch).max() == 0
    shifted = torch.where(mask, images(batch) + 0.1, 0.0)
    assert metrics.MaskedError()(shifted, batch).mean() == pytest.approx(12.75, rel=1e-4)
    restored = metrics.MaskedError().prepare(shifted, batch)
    assert torch.equal(torch.where(mask, 0.0, restored), torch.where(mask, 0.0, images(batch)))
    assert torch.equal(torch.where(mask, restored, 0.0), torch.where(mask, shifted, 0.0))


def test_psnr_of_a_known_error(batch) -> None:
    psnr = metrics.PSNR()(images(batch) + 0.02, batch)  # a hundredth of the range
    assert torch.allclose(psnr, torch.full((N,), 40.0), atol=1e-3)


def test_the_bicubic_baseline_is_near_the_image(batch) -> None:
    enlarged = metrics.PSNR().baselines(batch)["bicubic"]
    assert 15 < metrics.PSNR()(enlarged, batch).mean() < 30


def test_iou_is_averaged_over_the_labels_that_occur() -> None:
    a = torch.tensor([[[0, 0], [1, 1]]])
    b = torch.tensor([[[0, 1], [1, 1]]])
    assert metrics.mean_iou(a, b, 5).item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert not math.isnan(metrics.mean_iou(a, a, 5).item())
