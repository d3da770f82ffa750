"""The user's own images, masks, maps and boxes: read, or refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ldm.data.fields.decode import Unreadable, decode
from ldm.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""

BOXES = "[[label, left, top, right, bottom], ...]"


def read_image(path: str, size: Size, channels: int) -> Float[Tensor, "1 c h w"]:
    """A image in [-1, 1], scaled to cover `size`, its middle cut out."""
    return resize_and_crop(open_image(path, "image", channels), size) * 2 - 1


def open_image(path: str, name: str, channels: int) -> Image.Image:
    """The upright image in a file, RGB of 3 channels and luma of 1; UserError names `task.name`."""
    file = Path(path)
    if channels not in (1, 3):
        raise UserError(
            f"task.{name}: this model's images have {channels} channels, and a file is read as RGB or "
            "grey: give a task without a image"
        )
    if not file.is_file():
        raise UserError(f"there is no image task.{name}={path}: give the path of a image's file")
    try:
        picture = decode(file.read_bytes())
    except Unreadable as error:
        raise UserError(f"task.{name}={path} cannot be read ({error}): give a PNG or JPEG, say") from error
    return picture if channels == 3 else picture.convert("L")


def resize_and_crop(picture: Image.Image, size: Size) -> Float[Tensor, "1 c h w"]:
    """In [0, 1]."""
    picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).float() / 255
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))[None]


def open_map(path: str, name: str) -> Image.Image:
    """A map's file as it is, its numbers untouched."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no map task.{name}={path}: give the path of a PNG")
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise UserError(f"task.{name}={path} cannot be read ({error}): give a PNG") from error


def check_map_size(image: Image.Image, path: str, name: str, size: Size) -> Image.Image:
    """The same; UserError unless it has the size that is drawn: a map is never resized behind one's back."""
    if image.size != (size[1], size[0]):
        width, height = image.size
        raise UserError(
            f"task.{name}={path} is {width}x{height} (width x height) and the images are "
            f"{size[1]}x{size[0]}: give a map of that size, or size=[{height},{width}]"
        )
    return image


def read_labels(path: str, name: str, size: Size, num_labels: int) -> UInt8[Tensor, "1 h w"]:
    """A semantic map: one label a pixel, grey or indexed; UserError for unknown labels."""
    image = check_map_size(open_map(path, name), path, name, size)
    if image.mode not in ("L", "P"):
        raise UserError(
            f"task.{name}={path} has mode {image.mode}, and a map of labels is grey (L) or indexed (P): "
            "save one byte a pixel, its label"
        )
    labels = torch.from_numpy(np.array(image))
    above = labels[(labels >= num_labels) & (labels != 255)]  # 255 is no label
    if len(above):
        raise UserError(
            f"task.{name}={path} holds the label {int(above.max())}, and the model knows "
            f"0 to {num_labels - 1} (and 255 for none)"
        )
    return labels[None]


def read_scalar_map(path: str, name: str, size: Size) -> Float[Tensor, "1 1 h w"]:
    """A depth or edge map, grey of 8 or 16 bits, from -1 (black) to 1 (white)."""
    image = check_map_size(open_map(path, name), path, name, size)
    if image.mode not in ("L", "I;16", "I"):
        raise UserError(
            f"task.{name}={path} has mode {image.mode}, and such a map is grey of 8 or 16 bits: "
            "convert it to L or I;16"
        )
    numbers = np.array(image).astype(np.float32)
    return torch.from_numpy(numbers / (255 if image.mode == "L" else 65535) * 2 - 1)[None, None]


def read_mask(path: str, picture: str, size: Size) -> Float[Tensor, "1 1 h w"]:
    """1 where a mask of the image's size is white."""
    image, mask = open_image(picture, "image", 3), open_image(path, "mask", 1)
    if image.size != mask.size:
        (w, h), (mask_w, mask_h) = image.size, mask.size
        raise UserError(
            f"task.mask={path} is {mask_w}x{mask_h} and task.image is {w}x{h}: give them one size"
        )
    white = (resize_and_crop(mask, size) >= 0.5).float()
    if not white.any():
        raise UserError(f"task.mask={path} has no white: paint white what is to be drawn anew")
    return white


def paste_known(picture: str, mask: str, size: Size, channels: int) -> Callable[[Tensor], Tensor]:
    """Puts a image's own pixels where its mask is not white."""
    white, own = read_mask(mask, picture, size), read_image(picture, size, channels)
    return lambda images: torch.where(white > 0, images, own)


def read_boxes(path: str, num_labels: int, num_boxes: int) -> Float[Tensor, "1 n 5"]:
    """[[label, left, top, right, bottom], ...] of a JSON file, coordinates in [0, 1]; the rest is no box."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file task.boxes={path}: give a JSON of {BOXES}")
    try:
        boxes = torch.tensor(json.loads(file.read_text()), dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"task.boxes={path} cannot be read ({error}): give {BOXES}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise UserError(f"task.boxes={path} is no list of boxes of 5 numbers: give {BOXES}")
    if len(boxes) > num_boxes:
        raise UserError(f"task.boxes={path} has {len(boxes)} boxes, and the model takes at most {num_boxes}")
    labels, corners = boxes[:, 0], boxes[:, 1:]
    if ((labels < 0) | (labels >= num_labels) | (labels != labels.round())).any():
        raise UserError(
            f"task.boxes={path} has the labels {', '.join(f'{x:g}' for x in labels.tolist())}, and the model "
            f"knows 0 to {num_labels - 1}"
        )
    if ((corners < 0) | (corners > 1)).any() or (corners[:, :2] >= corners[:, 2:]).any():
        raise UserError(
            f"task.boxes={path} has a box that is not left < right and top < bottom in 0 to 1, "
            "shares of the image"
        )
    none = torch.full((num_boxes - len(boxes), 5), -1.0)
    return torch.cat([boxes, none])[None]
