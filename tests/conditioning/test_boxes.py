"""Layouts: a set of labelled boxes."""

import pytest
import torch

from ldm.conditioning.boxes import BoxTokens

PADDING = [-1.0, 0, 0, 0, 0]
LAYOUT = torch.tensor([[[3.0, 0.1, 0.2, 0.5, 0.6], [7.0, 0.5, 0.0, 1.0, 0.4], PADDING]])


@pytest.fixture(params=[0, 2])
def boxes(request):
    return BoxTokens(13, 16, 3, 0.1, depth=request.param)


def test_label_and_every_edge_matter(boxes):
    before = boxes(LAYOUT).context
    assert before.shape == (1, 3, 16)
    for i in range(5):
        changed = LAYOUT.clone()
        changed[0, 0, i] += 1 if i == 0 else 0.03
        assert (boxes(changed).context[0, 0] - before[0, 0]).norm() > 1e-2


def test_boxes_are_a_set(boxes):
    order = [2, 0, 1]
    torch.testing.assert_close(boxes(LAYOUT[:, order]).context, boxes(LAYOUT).context[:, order])


def test_padding_is_one_learned_token_whatever_its_coordinates(boxes):
    odd = LAYOUT.clone()
    odd[0, 2] = torch.tensor([-1.0, 0.3, 0.1, 0.9, 0.9])
    assert torch.equal(boxes(odd).context, boxes(LAYOUT).context)
    assert not torch.allclose(boxes(LAYOUT).context[0, 2], boxes(LAYOUT).context[0, 1])


def test_the_null_is_padding_alone(boxes):
    null = boxes.null(2).context
    assert torch.equal(null[1], boxes(torch.tensor([[PADDING] * 3])).context[0])
    null.sum().backward()
    assert boxes.none.grad is not None


def test_boxes_attend_to_each_other_if_there_are_layers():
    for depth, attends in ((0, False), (1, True)):
        boxes = BoxTokens(13, 16, 3, 0.1, depth=depth)
        changed = LAYOUT.clone()
        changed[0, 1, 0] = 2
        has_changed = (boxes(changed).context[0, 0] - boxes(LAYOUT).context[0, 0]).norm() > 1e-5
        assert has_changed == attends


def test_another_number_of_boxes_is_refused(boxes):
    with pytest.raises(ValueError, match=r"batch\['boxes'\] has 2 boxes per sample, .*num_boxes=3"):
        boxes(LAYOUT[:, :2])
    with pytest.raises(ValueError, match="width 16 .* num_heads 3"):
        BoxTokens(13, 16, 3, 0.1, num_heads=3)
