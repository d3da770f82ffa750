import io

import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from ldm.data.demo.scenes import BACKGROUNDS, COLOURS, DemoScenes, Place, Scene, Thing, caption, draw
from ldm.evaluation.demo.alignment import score_alignment
from ldm.evaluation.demo.scene_reader import SceneReading, read_scenes, stack_images

SPLITS = ("train", "val", "held_out")


def render(count):
    records = [DemoScenes(split, count, seed=3)[i] for split in SPLITS for i in range(count)]
    return [r.image for r in records], [r.caption for r in records]


def read_one(image) -> SceneReading:
    return read_scenes(stack_images([image]))[0]


def single_object(shape="square", colour="red", background="white", size="large") -> Image.Image:
    scene = Scene(background, (Thing(size, colour, shape),))
    return draw(scene, (Place(32.0, 32.0, 24.0 if size == "large" else 14.5),))


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("count", [200, pytest.param(700, marks=pytest.mark.slow)])
def test_rendered_scenes_are_read_back(count):
    images, captions = render(count)
    result = score_alignment(stack_images(images), captions)
    assert result.n == 3 * count and result.passed == result.passed_with_size == 1


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_centres_and_side_lengths_are_read_to_a_fraction_of_a_pixel(shape):
    spot = Place(30.3, 35.6, 23.4)
    (thing,) = read_one(draw(Scene("grey", (Thing("large", "blue", shape),)), (spot,))).objects
    assert (thing.x, thing.y, thing.across) == pytest.approx((spot.x, spot.y, spot.across), abs=0.5)


def test_mild_corruption_does_not_matter():
    images, captions = render(60)
    noise = 8 * torch.randn(180, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noisy = (stack_images(images) + noise).round().clamp(0, 255).to(torch.uint8)
    blurred = stack_images(image.filter(ImageFilter.GaussianBlur(1)) for image in images)
    for corrupted in (noisy, blurred, stack_images(jpeg(image, 85) for image in images)):
        assert score_alignment(corrupted, captions).passed_with_size == 1
    assert score_alignment(stack_images(jpeg(image, 75) for image in images), captions).passed > 0.97


def test_floats_and_larger_images_read_the_same():
    records = list(DemoScenes("train", 30))
    tensor = stack_images(r.image for r in records)
    assert read_scenes(tensor.float() / 127.5 - 1) == read_scenes(tensor)
    larger = stack_images(r.image for r in DemoScenes("train", 30, size=128))
    assert score_alignment(larger, [r.caption for r in records]).passed_with_size == 1


def test_blurry_images_have_no_shapes():
    images, captions = render(40)
    result = score_alignment(
        stack_images(image.filter(ImageFilter.GaussianBlur(3)) for image in images), captions
    )
    assert result.passed == result.shapes == 0


@pytest.mark.parametrize("share", [0.5, 0.65])
@pytest.mark.parametrize("box", [(0, 0, 1, 0), (0, 0, 0, 1)], ids=["from the left", "from above"])
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_cut_objects_lose_their_shape(shape, size, box, share):
    image = single_object(shape, size=size)
    side = 24 if size == "large" else 14.5
    cut = 32 - side / 2 + side * (1 - share)
    image.paste(BACKGROUNDS["white"], (0, 0, round(cut) if box[2] else 64, round(cut) if box[3] else 64))
    (thing,) = read_one(image).objects
    assert thing.shape != shape or (shape == "triangle" and box[3] and thing.size != size)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_two_coloured_objects_have_no_colour(shape):
    image = single_object(shape)
    half = Image.new("RGB", (64, 64), COLOURS["blue"])
    inside = Image.eval(
        single_object(shape, background="black").getchannel("R"), lambda value: 255 * (value > 110)
    )
    inside.paste(0, (0, 0, 64, 34))
    image.paste(half, mask=inside)
    (thing,) = read_one(image).objects
    assert thing.colour is None and read_one(single_object(shape)).objects[0].colour == "red"


def test_pale_and_unknown_colours_have_no_name():
    for rgb in [(235, 150, 150), (0, 255, 255), (255, 0, 255), (128, 128, 128)]:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((20, 20, 43, 43), fill=rgb)
        assert read_one(image).objects[0].colour is None


@pytest.mark.parametrize("mark", [(4, 4, 8, 8), (10, 50, 14, 54)])
@pytest.mark.parametrize("shade", [(255, 190, 190), COLOURS["red"]])
def test_stray_marks_and_faint_objects_make_a_scene_unclear(mark, shade):
    image = single_object()
    ImageDraw.Draw(image).rectangle(mark, fill=shade)
    reading = read_one(image)
    assert reading.objects is None or len(reading.objects) == 2


def test_empty_crowded_and_noisy_images_have_no_objects():
    assert read_one(Image.new("RGB", (64, 64), "black")) == SceneReading("black", None)
    crowd = Image.new("RGB", (64, 64), "white")
    for x in (4, 24, 44):
        ImageDraw.Draw(crowd).rectangle((x, 20, x + 14, 34), fill=COLOURS["red"])
    assert read_one(crowd) == SceneReading("white", None)
    noise = torch.randint(
        0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert score_alignment(noise, [caption(DemoScenes("train", 4).scene(i)[0]) for i in range(4)]).passed == 0


def test_a_mixed_or_coloured_border_is_no_background():
    image = single_object()
    image.paste(BACKGROUNDS["black"], (0, 0, 64, 10))
    assert read_one(image).background is None
    assert read_one(Image.new("RGB", (64, 64), COLOURS["red"])).background is None


def test_other_forms_of_image_are_refused():
    for shape in ((1, 3, 32, 32), (1, 3, 64, 96)):
        with pytest.raises(ValueError, match="squares of >= 64"):
            read_scenes(torch.zeros(shape, dtype=torch.uint8))
