"""A class for the configs of tests/cli/config."""

from ldm.errors import UserError


class Denoiser:
    def __init__(self, width: int, levels: list[int]) -> None:
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        if width > 10_000:
            try:
                raise OSError("out of memory")
            except OSError as error:
                raise UserError("give a smaller denoiser.width") from error
        self.width, self.levels = width, levels
