import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.demo.scenes import BACKGROUNDS, COLOURS, DEPTHS, DemoScenes, number
from ldm.data.reader import open_shards
from ldm.data.shards import write_shards


def array(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)))


def test_the_maps_agree_with_the_pictures() -> None:
    scenes = DemoScenes("train", 60)
    for row in range(60):
        scene, _ = scenes.scene(row)
        record = scenes[row]
        pixels, labels = np.asarray(record.image).astype(int), array(record.members["seg.png"])
        depth = array(record.members["depth.png"])
        assert set(np.unique(labels)) == {0, *(1 + number(thing) for thing in scene.things)}
        assert int(record.members["cls"]) == number(scene.things[0]) and not depth[labels == 0].any()
        for thing, box in zip(scene.things, record.metadata["boxes"], strict=True):
            own = labels == 1 + number(thing)
            assert (depth[own] == DEPTHS[thing.size]).all() and box[0] == number(thing)
            y, x = np.nonzero(own)
            around = labels * 0
            around[y.min() - 1 : y.max() + 2, x.min() - 1 : x.max() + 2] = 1
            ground = np.array(BACKGROUNDS[scene.background])
            way = COLOURS[thing.colour] - ground
            covered = (pixels - ground) @ way / (way @ way) * around  # how much of a pixel the object fills
            assert own[covered > 0.75].all() and not own[covered < 0.25].any()
            edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 64
            assert np.abs(edges - box[1:]).max() <= 1 / 64


def test_shards_hold_them(tmp_path: Path) -> None:
    write_shards(DemoScenes("val", 3), tmp_path)
    sample = open_shards(str(tmp_path))[0].sample(1)
    assert set(sample.members) == {"png", "txt", "json", "cls", "seg.png", "depth.png"}
    assert array(sample.read("seg.png")).shape == (64, 64) and json.loads(sample.read("json"))["boxes"]
