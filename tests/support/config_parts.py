"""A class for the configs of tests/cli/config."""


class Denoiser:
    def __init__(self, width: int, levels: list[int]) -> None:
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        self.width, self.levels = width, levels
