"""Preview images during training."""

import torch
from PIL import Image

from ldm.callbacks.ema import EMA
from ldm.callbacks.image_logger import ImageLogger
from ldm.grid import LABEL_WIDTH, MARGIN, to_pil
from tests.support import tiny


def test_saves_every_n_steps_and_at_the_end(tmp_path):
    stage = tiny.first_stage()
    trainer = tiny.trainer(5, [EMA(0.9), ImageLogger(str(tmp_path / "images"), every_n_steps=2)])
    trainer.fit(stage, tiny.data(tmp_path / "shards", 5))
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["step00000002.png", "step00000004.png", "step00000005.png"]


def test_reconstructions_are_below_their_images(tmp_path):
    stage, ema, logger = tiny.first_stage(), EMA(0.9), ImageLogger(str(tmp_path), 10, scale=2)
    trainer = tiny.trainer(3, [ema, logger])
    trainer.fit(stage, tiny.data(tmp_path / "shards", 3))
    sheet = Image.open(tmp_path / "step00000003.png")
    assert sheet.size == (LABEL_WIDTH + 4 * (32 + MARGIN), 2 * (32 + MARGIN) + MARGIN)
    batch = tiny.batch(4)
    with torch.no_grad(), ema.use_averages(stage):
        x_hat = stage.model.reconstruct(stage.model.posterior(stage.pixels(batch)).mean)
    for row, images in enumerate((stage.pixels(batch), x_hat)):
        for i, expected in enumerate(images):
            corner = (LABEL_WIDTH + i * (32 + MARGIN), MARGIN + row * (32 + MARGIN))
            cell = sheet.crop((*corner, corner[0] + 32, corner[1] + 32)).resize((16, 16), Image.NEAREST)
            assert cell.tobytes() == to_pil(expected).tobytes()


def test_training_continues_in_training_mode(tmp_path):
    modes = []
    stage = tiny.first_stage()
    stage.on_train_batch_start = lambda *_: modes.append(stage.model.training)
    trainer = tiny.trainer(3, [ImageLogger(str(tmp_path), 1)])
    trainer.fit(stage, tiny.data(tmp_path / "shards", 3))
    assert modes == [True] * 3
