"""Parts that the configs of these tests name."""


class Denoiser:
    def __init__(self, width: int, levels: list[int]) -> None:
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        self.width, self.levels = width, levels
