"""Read the user's images, masks, maps and boxes; UserError for a file that cannot be used."""

import json
from collections.abc import Callable
from os.path import isfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ldm.data.fields.decode import decode
from ldm.data.fields.maps import decode_grey_map, decode_labels, decode_mask
from ldm.data.fields.unreadable import Unreadable, UnsuitableMap
from ldm.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""

BOXES_FORMAT = "[[label, left, top, right, bottom], ...]"


def read_image(path: str, size: Size, channels: int) -> Float[Tensor, "1 c h w"]:
    """Return an image file in [-1, 1], resized to cover `size` and center-cropped."""
    return resize_and_crop(open_image(path, "image", channels), size) * 2 - 1


def open_image(path: str, name: str, channels: int) -> Image.Image:
    """Open the image task.`name`, rotated by its EXIF orientation, as RGB for 3 channels or grey for 1."""
    file = Path(path)
    if channels not in (1, 3):
        raise UserError(
            f"task.{name}: this model's images have {channels} channels, but image files have 1 or 3: choose "
            "a task without an image file"
        )
    if not isfile(file):  # Path.is_file raises for a name that is too long
        raise UserError(f"no image task.{name}={path}: give the path of an image file")
    try:
        image = decode(file.read_bytes())
    except Unreadable as error:
        raise UserError(f"cannot read task.{name}={path} ({error}): give a PNG or JPEG") from error
    return image if channels == 3 else image.convert("L")


def resize_and_crop(image: Image.Image, size: Size) -> Float[Tensor, "1 c h w"]:
    """Return the image in [0, 1], resized to cover `size` and center-cropped."""
    image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))[None]


def open_map(
    path: str, name: str, decode: Callable[[bytes], Shaped[np.ndarray, "h w"]]
) -> Shaped[np.ndarray, "h w"]:
    """Return the values of the map or mask task.`name`, rotated by its EXIF orientation."""
    file = Path(path)
    if not isfile(file):  # Path.is_file raises for a name that is too long
        raise UserError(f"no file task.{name}={path}: give the path of a PNG")
    try:
        return decode(file.read_bytes())
    except UnsuitableMap as error:
        raise UserError(f"task.{name}={path} {error}") from error
    except Unreadable as error:
        raise UserError(f"cannot read task.{name}={path} ({error}): give a PNG") from error


def check_map_size(map_size: Size, path: str, name: str, size: Size) -> None:
    """Raise UserError unless a map has the size of the images, as maps are never resized."""
    if map_size != size:
        height, width = map_size
        raise UserError(
            f"task.{name}={path} is {width}x{height} (width x height), but the images are "
            f"{size[1]}x{size[0]}: give a map of that size, or size=[{height},{width}]"
        )


def read_labels(path: str, name: str, size: Size, num_labels: int) -> UInt8[Tensor, "1 h w"]:
    """Return a semantic map, one label per pixel, from a grey or indexed PNG; 255 is no label."""
    labels = torch.from_numpy(open_map(path, name, decode_labels))
    check_map_size((labels.shape[0], labels.shape[1]), path, name, size)
    unknown = labels[(labels.int() >= num_labels) & (labels != 255)]  # as uint8, 256 would be 0
    if len(unknown):
        raise UserError(
            f"task.{name}={path} has the label {int(unknown.max())}, but this model has the labels 0 to "
            f"{num_labels - 1}: use these, or 255 for unlabelled pixels"
        )
    return labels[None]


def read_scalar_map(path: str, name: str, size: Size) -> Float[Tensor, "1 1 h w"]:
    """Return a depth or edge map from a grey image of any depth, -1 for black to 1 for white."""
    levels = torch.from_numpy(open_map(path, name, decode_grey_map))
    check_map_size((levels.shape[0], levels.shape[1]), path, name, size)
    return (2 * levels - 1)[None, None]


def read_mask(path: str, image_path: str, size: Size) -> Float[Tensor, "1 1 h w"]:
    """Return the mask of an image: 1 where it is white, 0 elsewhere, such as where it is transparent."""
    image, levels = open_image(image_path, "image", 3), open_map(path, "mask", decode_mask)
    mask = Image.fromarray((levels * 255).round().astype(np.uint8))
    if image.size != mask.size:
        (w, h), (mask_w, mask_h) = image.size, mask.size
        raise UserError(
            f"task.mask={path} is {mask_w}x{mask_h}, but task.image is {w}x{h}: give both the same size"
        )
    white = (resize_and_crop(mask, size) >= 0.5).float()
    if not white.any():
        raise UserError(f"task.mask={path} has no white pixels: paint the area to be sampled in white")
    return white


def restore_known_pixels(
    image_path: str, mask_path: str, size: Size, channels: int
) -> Callable[[Tensor], Tensor]:
    """Return a function that restores the pixels of the input image wherever its mask is not white."""
    mask, known = read_mask(mask_path, image_path, size), read_image(image_path, size, channels)
    return lambda images: torch.where(mask > 0, images, known)


def read_boxes(path: str, num_labels: int, num_boxes: int) -> Float[Tensor, "1 n 5"]:
    """Return the boxes of a JSON file, padded with -1 to `num_boxes`; coordinates are in [0, 1]."""
    file = Path(path)
    if not isfile(file):  # Path.is_file raises for a name that is too long
        raise UserError(f"no file task.boxes={path}: give a JSON of {BOXES_FORMAT}")
    try:
        boxes = torch.tensor(json.loads(file.read_text()), dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot read task.boxes={path} ({error}): give a JSON of {BOXES_FORMAT}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise UserError(f"task.boxes={path} is not a list of boxes of 5 numbers: give {BOXES_FORMAT}")
    if len(boxes) > num_boxes:
        raise UserError(
            f"task.boxes={path} has {len(boxes)} boxes, but this model takes at most {num_boxes}: remove some"
        )
    labels, corners = boxes[:, 0], boxes[:, 1:]
    if ((labels < 0) | (labels >= num_labels) | (labels != labels.round())).any():
        raise UserError(
            f"task.boxes={path} has the labels {', '.join(f'{x:g}' for x in labels.tolist())}, but this "
            f"model has the labels 0 to {num_labels - 1}: use these"
        )
    if ((corners < 0) | (corners > 1)).any() or (corners[:, :2] >= corners[:, 2:]).any():
        raise UserError(
            f"task.boxes={path} has a box without left < right and top < bottom in [0, 1]: give fractions of "
            "the image's width and height"
        )
    padding = torch.full((num_boxes - len(boxes), 5), -1.0)
    return torch.cat([boxes, padding])[None]
