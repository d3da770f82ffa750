"""Prompts from the command line and from files."""

import pytest
from omegaconf import OmegaConf

from ldm.cli.sampling.prompts import read_prompts
from ldm.errors import UserError


def test_prompts_are_a_list_or_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blue square \n")
    assert read_prompts(str(file)) == ["a red circle", "a blue square"]
    assert read_prompts(OmegaConf.create(["a red circle", 7])) == ["a red circle", "7"]
    with pytest.raises(UserError, match=r"no prompt file a red circle: .* prompts="):
        read_prompts("a red circle")
    for invalid in (7, "a long caption " * 40):
        with pytest.raises(UserError, match="no prompt file"):
            read_prompts(invalid)
    assert read_prompts(None) is None
    file.write_bytes("\ufeffein grüner Kreis\n".encode())
    assert read_prompts(str(file)) == ["ein grüner Kreis"]
    file.write_text("\n")
    with pytest.raises(UserError, match="prompts=.* is empty"):
        read_prompts(str(file))
