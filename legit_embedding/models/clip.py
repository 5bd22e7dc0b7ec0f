"""Images with open_clip: any architecture that it has, the visual tower alone."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from legit_embedding.errors import EmbeddingError, InvalidItemError
from legit_embedding.models import clip_tower
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.clip_preprocess import Preprocess
from legit_embedding.models.clip_source import ClipSource, resolve
from legit_embedding.models.device import choose_device, choose_dtype, dtype_name, out_of_memory_guard, release_cached
from legit_embedding.models.images import PixelBudget, load_pixels, open_image
from legit_embedding.models.tensors import module_nbytes, staging, state_digest, to_device, to_host
from legit_embedding.models.vectors import finalize, fingerprint
from legit_embedding.models.weights import digest_of
from legit_embedding.values import BatchLimits, FloatMatrix, InputKind, ModelInfo, Options, Outcome, Payload, Prepared

CPU_ITEMS, ACCELERATOR_ITEMS = 16, 128
"""Items a batch, unless `max_items` says otherwise: a CPU gains nothing from more, an accelerator little."""

TENSOR_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
}


class OpenClipAdapter:
    """Loads an entry with `adapter = "open_clip"`."""

    modality: ClassVar[str] = "image"

    def load(self, spec: ModelSpec, limits: InputLimits) -> "OpenClipModel":
        """See `Adapter.load`."""
        device = choose_device(spec.device)
        dtype = choose_dtype(spec.dtype, device)
        source = resolve(spec)
        model = clip_tower.build(source.architecture, seed=spec.seed)
        tower = model.get_submodule("visual")
        if source.checkpoint is None:
            weights = f"untrained-{spec.seed}-{state_digest(tower.state_dict())}"
        else:
            clip_tower.load(model, source.checkpoint, trust_pickle=spec.trust_pickle)
            weights = digest_of([source.checkpoint])
        del model
        with out_of_memory_guard(device):
            tower.eval().requires_grad_(requires_grad=False).to(device=device, dtype=dtype)
        return OpenClipModel(
            tower, spec=spec, source=source, weights=weights, device=device, dtype=dtype, limits=limits
        )


class OpenClipModel:
    """A loaded visual tower; see `EmbeddingModel`."""

    def __init__(
        self,
        tower: torch.nn.Module,
        *,
        spec: ModelSpec,
        source: ClipSource,
        weights: str,
        device: str,
        dtype: torch.dtype,
        limits: InputLimits,
    ) -> None:
        size: Any = getattr(tower, "image_size", source.preprocess["size"])
        config = {**source.preprocess, "size": size}
        self.preprocess = Preprocess(config, device=device)
        self._tower: torch.nn.Module | None = tower
        self._dtype = dtype
        self._max_pixels = limits.max_pixels
        self._decoding = PixelBudget(limits.max_pixels)
        self._identity = fingerprint(
            adapter="open_clip",
            weights=weights,
            embed_dim=source.architecture["embed_dim"],
            vision=source.architecture["vision_cfg"],
            quick_gelu=source.architecture.get("quick_gelu", False),
            preprocess=config,
        )
        items = spec.max_items or (CPU_ITEMS if device == "cpu" else ACCELERATOR_ITEMS)
        self._info = ModelInfo(
            name=spec.key,
            adapter="open_clip",
            modality=OpenClipAdapter.modality,
            dim=int(source.architecture["embed_dim"]),
            device=device,
            dtype=dtype_name(dtype),
            nbytes=module_nbytes(tower),
            limits=BatchLimits(max_items=items),
            untrained=spec.untrained,
        )

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        return self._info

    @property
    def accepts(self) -> frozenset[InputKind]:
        """Encoded images, and tensors that another process has prepared."""
        return frozenset({"bytes", "tensor"})

    @property
    def prepare_chunk(self) -> int:
        """One: decoding an image takes milliseconds, and the threads share them out."""
        return 1

    @property
    def prepared_nbytes(self) -> int:
        """A prepared tensor of float32; an encoded image becomes a quarter of it.

        What decoding takes for a moment is bounded apart, for all threads together, by `PixelBudget`.
        """
        return int(np.prod(self.preprocess.shape)) * np.dtype(np.float32).itemsize

    def fingerprint(self, options: Options) -> str:
        """See `EmbeddingModel.fingerprint`; the dtype is no part of it."""
        return fingerprint(
            model=self._identity, normalize=options.normalize, dimensions=options.dimensions or self._info.dim
        )

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:
        """Decodes, resizes and crops; normalising is left to `forward`."""
        if options.prompt is not None:
            return [InvalidItemError(f"options.prompt: {self._info.name!r} is an image model and has none")] * len(
                payloads
            )
        return [self._prepare(payload) for payload in payloads]

    def inputs(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """What the tower gets: shape (n, 3, height, width), normalised, on the device, in the model's dtype."""
        rows: dict[np.dtype[Any], list[int]] = defaultdict(list)
        for row, one in enumerate(batch):
            rows[one.data.dtype].append(row)
        parts = {dtype: self._normalised([batch[row].data for row in some]) for dtype, some in rows.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        tensor = torch.empty((len(batch), *self.preprocess.shape), dtype=self._dtype, device=self._info.device)
        for dtype, part in parts.items():
            tensor[rows[dtype]] = part
        return tensor

    def forward(self, batch: Sequence[Prepared]) -> FloatMatrix:
        """Embeddings of shape (n, dim), on the host: this returns when the device is done."""
        if self._tower is None:
            raise RuntimeError(f"the model {self._info.name!r} is closed")
        with torch.inference_mode(), out_of_memory_guard(self._info.device):
            return to_host(clip_tower.output_of(self._tower(self.inputs(batch))))

    def finish(self, raw: FloatMatrix, options: Sequence[Options]) -> list[Outcome]:
        """Cut, normalised, checked."""
        return finalize(raw, options)

    def close(self) -> None:
        """Frees the tower."""
        self._tower = None
        release_cached(self._info.device)

    def __repr__(self) -> str:
        info = self._info
        return f"<OpenClipModel {info.name} on {info.device} in {info.dtype}, dim {info.dim}>"

    def _prepare(self, payload: Payload) -> Prepared | EmbeddingError:
        try:
            if isinstance(payload, np.ndarray):
                tensor = self._checked(payload)
            elif isinstance(payload, bytes):
                tensor = self._decoded(payload)
            else:
                return InvalidItemError(f"{self._info.name!r} is an image model and takes no text")
        except EmbeddingError as error:
            return error
        return Prepared(data=tensor, tokens=1, nbytes=tensor.nbytes)

    def _decoded(self, data: bytes) -> NDArray[np.uint8]:
        with contextlib.closing(open_image(data, max_pixels=self._max_pixels)) as image:
            self.preprocess.check_resizable(image, self._max_pixels)
            between = self.preprocess.resized_pixels(image.width, image.height)
            with self._decoding.hold(image.width * image.height + between):
                load_pixels(image)
                return self.preprocess.pixels(image)

    def _checked(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """float16 and float32 are taken as normalised already, uint8 as pixels."""
        if tensor.shape != self.preprocess.shape:
            raise InvalidItemError(
                f"shm.shape is {list(tensor.shape)}, but the model {self._info.name!r} takes "
                f"{list(self.preprocess.shape)}"
            )
        if tensor.dtype not in TENSOR_DTYPES:
            raise InvalidItemError(f"shm.dtype {tensor.dtype} is none of float32, float16, uint8")
        return tensor

    def _normalised(self, arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
        shape = (len(arrays), *self.preprocess.shape)
        host = staging(shape, TENSOR_DTYPES[arrays[0].dtype], self._info.device)
        np.stack(arrays, out=host.numpy())
        tensor = to_device(host, self._info.device)
        if tensor.dtype == torch.uint8:
            tensor = self.preprocess.normalise(tensor)
        return tensor.to(self._dtype)
