"""open_clip's inference transform, cut in two: pixels on a prepare thread, normalising on the device.

An image waits as the 8-bit pixels that the model will see: a quarter of the float32 tensor that the transform would
give, and the same values, bit for bit, once `normalise` has run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
from PIL import Image

from legit_embedding.errors import ConfigurationError, SourceTooLargeError, UndecodableError

CHANNELS = 3
WHITE = 255.0


class Preprocess:
    """What `config` (the fields of open_clip's `PreprocessCfg`) asks for.

    Raises:
        ConfigurationError: it has a value that open_clip cannot use.
    """

    def __init__(self, config: Mapping[str, Any], *, device: str) -> None:
        try:
            cfg = PreprocessCfg(**config)
            *geometry, to_tensor, normalise = image_transform_v2(cfg, is_train=False).transforms
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigurationError(f"open_clip cannot preprocess images like this: {dict(config)}") from error
        if not (isinstance(to_tensor, MaybeToTensor) and hasattr(normalise, "mean") and hasattr(normalise, "std")):
            raise ConfigurationError("the installed open_clip has a transform that does not end with normalising")
        self._geometry = geometry
        self._resize_mode: str = cfg.resize_mode
        self.shape: tuple[int, int, int] = tuple(cfg.input_size)
        # Dividing by a tensor on the device divides; dividing by a number multiplies by its reciprocal on CUDA.
        self._white = torch.tensor(WHITE, device=device)
        self._mean = torch.as_tensor(normalise.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._std = torch.as_tensor(normalise.std, dtype=torch.float32, device=device).view(-1, 1, 1)

    def resized_pixels(self, width: int, height: int) -> int:
        """About how many pixels an image has between resizing and cropping: many, where its sides are very unequal."""
        _, target_height, target_width = self.shape
        if self._resize_mode != "shortest":
            return target_height * target_width
        scale = max(target_height / height, target_width / width)
        return round(width * scale) * round(height * scale)

    def check_resizable(self, image: Image.Image, max_pixels: int) -> None:
        """Raises `SourceTooLargeError` for a sliver of an image, which resizing would blow up."""
        if self.resized_pixels(image.width, image.height) > max_pixels:
            raise SourceTooLargeError(
                f"the image is {image.width} x {image.height}: resized for the model it would have more pixels than "
                f"LEGIT_MAX_PIXELS ({max_pixels:,}) allows"
            )

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resized, cropped and in RGB; shape (3, height, width), uint8.

        Raises:
            UndecodableError: there is no way from the image's colours to RGB.
        """
        try:
            for step in self._geometry:
                image = step(image)
        except (OSError, ValueError) as error:
            raise UndecodableError(f"an image of mode {image.mode} cannot be made RGB: {error}") from error
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` of shape (n, 3, height, width), uint8, on the device, as the float32 tensor that open_clip gives."""
        return pixels.to(torch.float32).div_(self._white).sub_(self._mean).div_(self._std)
