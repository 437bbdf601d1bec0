"""`RemoteVAE`: in the place of a pipeline's VAE, which the service has instead.

It needs torch, like the pipelines, and asks the service for what pipelines ask of a VAE besides
decoding: its configuration and, where they lie in the weights, the statistics of its latents.
"""

from __future__ import annotations

import importlib
import inspect
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

from darkroom._client import Client
from darkroom._errors import LatentsError, VaeDetailsError
from darkroom._results import load_library
from darkroom_wire.jobs import Format, Scaling, Task, VaeInfo

_STATISTICS: Mapping[str, tuple[str, ...]] = {
    "ltx-video": ("latents_mean", "latents_std"),
    "flux2": ("bn.running_mean", "bn.running_var"),
}
"""Families whose statistics lie in the weights, and their names there."""

_LOCAL_SOURCES = ("/", ".", "~", "package:")
"""How a source begins that is no repository on the hub."""


class RemoteConfig(dict[str, Any]):
    """A VAE's configuration: a mapping whose values are attributes too, as in diffusers."""

    def __getattr__(self, name: str) -> Any:
        """Give a value, or say as an object would that there is none."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the VAE's configuration has no {name!r}") from None

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("the configuration of a remote VAE cannot be changed")

    __setattr__ = __setitem__ = __delitem__ = __delattr__ = _refuse
    setdefault = pop = popitem = update = clear = __ior__ = _refuse


class DecoderOutput(NamedTuple):
    """What `decode` gives."""

    sample: Any


class EncoderOutput(NamedTuple):
    """What `encode` gives for most classes of VAEs."""

    latent_dist: Distribution


class TinyEncoderOutput(NamedTuple):
    """What `encode` gives for `AutoencoderTiny`."""

    latents: Any


class DeepEncoderOutput(NamedTuple):
    """What `encode` gives for `AutoencoderDC`."""

    latent: Any


class Distribution:
    """Encoded pictures: only the distribution's mode, which is also its mean."""

    def __init__(self, torch: Any, mean: Any) -> None:
        self._torch = torch
        self.mean = mean

    def mode(self) -> Any:
        """Give the mode."""
        return self.mean

    def sample(self, generator: Any = None) -> Any:
        """Give the mode.

        A local VAE would add noise of a very small deviation. The noise is drawn here too, and
        dropped, so that a seed gives the same picture as with a local VAE.
        """
        batched = isinstance(generator, list)
        shape = (1, *self.mean.shape[1:]) if batched else self.mean.shape
        for one in generator if batched else [generator]:
            device = self.mean.device if one is None else one.device
            self._torch.randn(shape, generator=one, device=device, dtype=self.mean.dtype)
        return self.mean


_ENCODER_OUTPUTS: Mapping[str, type[TinyEncoderOutput | DeepEncoderOutput]] = {
    "AutoencoderTiny": TinyEncoderOutput,
    "AutoencoderDC": DeepEncoderOutput,
}


class RemoteVAE:
    """Stands for a VAE in a diffusers pipeline; each decode or encode is a job of the service.

        pipe = StableDiffusionXLPipeline.from_pretrained(repository, vae=None)
        pipe.vae = RemoteVAE("sdxl")

    Pipelines that are not built for `vae=None` take it in their constructor. The latents are those
    that a local VAE would be given: the pipeline has undone the scaling. What comes back is on the
    device and in the dtype of what was given; the service computes in its own. It has no gradient.

    Methods that set a module up, such as `to`, `eval` and `enable_tiling`, may be called and change
    nothing, but that `to` sets the `device` that is told to the pipeline.

    Args:
        name: A name from the catalogue.
        client: The service; else a new `Client()`.
        config: The VAE's configuration, where the service and the hub do not know it.
        buffers: Statistics that lie in the VAE's weights, by name, where the service does not know
            them: `latents_mean` and `latents_std`, or `bn.running_mean` and `bn.running_var`.
        dtype: A torch dtype or its name, which is told to the pipeline; else the catalogue's, or
            float32. Where the configuration says `force_upcast`, float16 is float32, as in the
            service.
        timeout: Seconds to wait for each job's end.

    Raises:
        NotFoundError: the service has no VAE of that name.
        VaeDetailsError: its configuration or its statistics are not known.
        ResultTypeError: torch is not installed.
    """

    def __init__(
        self,
        name: str,
        client: Client | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        buffers: Mapping[str, Any] | None = None,
        dtype: Any = None,
        timeout: float | None = None,
    ) -> None:
        self._torch = load_library("torch", "RemoteVAE needs torch")
        if client is None:
            client = Client()
            weakref.finalize(self, client.close)
        self._client = client
        self._timeout = timeout
        self._info = self._client.vae(name)
        self.config = RemoteConfig(_with_defaults(_find_config(self._info, config)))
        self._statistics = {
            name: self._torch.as_tensor(values)
            for name, values in _find_statistics(self._info, buffers).items()
        }
        self.dtype = self._choose_dtype(dtype)
        self.device = self._torch.device("cpu")

    def decode(
        self,
        z: Any,
        temb: Any = None,
        return_dict: bool = True,
        generator: Any = None,
    ) -> DecoderOutput | tuple[Any]:
        """Decode latents in the VAE's own layout and scale.

        Args:
            z: [B, C, h, w], or for video VAEs [B, C, T, h, w].
            temb: The timestep of LTX-Video's VAEs, which has to be 0; other classes have
                `return_dict` in its place, and so may callers.
            return_dict: Whether to give an object with `sample`, instead of a tuple.
            generator: Has no use; the service's VAEs draw nothing.

        Raises:
            LatentsError: a timestep other than 0.
            DarkroomError: see the tree in `darkroom`.
        """
        del generator
        if isinstance(temb, bool):
            temb, return_dict = None, temb
        if temb is not None and self._torch.as_tensor(temb).any():
            raise LatentsError(
                "the service decodes with the timestep 0 only: leave decode_timestep at 0.0"
            )
        latents = self._as_sent(z)
        if self._info.family == "cogvideox":
            # With 16 frames the two layouts look the same: the service takes frames first.
            latents = latents.transpose(1, 2)
        sample = self._develop(latents, z, format=Format.SAFETENSORS)
        if self._info.family == "qwen-image":
            sample = sample.unsqueeze(2)
        return DecoderOutput(sample) if return_dict else (sample,)

    def encode(self, x: Any, return_dict: bool = True) -> Any:
        """Encode pixels in [-1, 1] to latents in the VAE's own layout and scale.

        Args:
            x: [B, 3, H, W], or for video VAEs [B, 3, F, H, W].
            return_dict: Whether to give an object with `latent_dist`, or `latents` or `latent` for
                classes without a distribution, instead of a tuple.

        Raises:
            DarkroomError: see the tree in `darkroom`.
        """
        pixels = self._as_sent(x)
        if self._info.family == "qwen-image":
            pixels = pixels.squeeze(2)
        latents = self._develop(pixels, x, task=Task.ENCODE)
        if self._info.family == "qwen-image":
            latents = latents.unsqueeze(2)
        if self._info.family == "cogvideox":
            latents = latents.transpose(1, 2)
        plain = _ENCODER_OUTPUTS.get(self.config.get("_class_name", ""))
        if plain is not None:
            output: Any = plain(latents)
        else:
            output = EncoderOutput(Distribution(self._torch, latents))
        return output if return_dict else tuple(output)

    @property
    def spatial_compression_ratio(self) -> int:
        """The pixels on each side that one latent becomes."""
        return self._ratio("spatial_compression_ratio", self._info.spatial_factor)

    @property
    def temporal_compression_ratio(self) -> int:
        """The frames that each latent frame after the first becomes."""
        return self._ratio("temporal_compression_ratio", self._info.temporal_factor)

    @property
    def bn(self) -> SimpleNamespace:
        """The batch-norm layer of FLUX.2's VAE, as far as it is statistics."""
        return SimpleNamespace(
            running_mean=self._statistic("bn.running_mean"),
            running_var=self._statistic("bn.running_var"),
        )

    @property
    def latents_mean(self) -> Any:
        """The mean of each channel, of LTX-Video's VAEs."""
        return self._statistic("latents_mean")

    @property
    def latents_std(self) -> Any:
        """The standard deviation of each channel, of LTX-Video's VAEs."""
        return self._statistic("latents_std")

    def __getattr__(self, name: str) -> Any:
        """Give what the configuration has, where nothing else is called so, as diffusers does."""
        config = self.__dict__.get("config", {})
        if name in config:
            return config[name]
        raise AttributeError(
            f"a RemoteVAE has no {name!r}: it has the configuration, decode and encode, not the "
            "weights"
        )

    def __repr__(self) -> str:
        return f"<RemoteVAE {self._info.name} at {self._client.url}>"

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Note the device that a pipeline is to be told; a dtype changes nothing."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, str | int | self._torch.device) and not isinstance(value, bool):
                self.device = self._torch.device(value)
        return self

    def modules(self) -> Iterator[Any]:
        """Give this object: there are no layers."""
        return iter([self])

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Give one empty tensor, which has the dtype and the device."""
        del recurse
        return iter([self._torch.empty(0, dtype=self.dtype, device=self.device)])

    def _unchanged(self, *_: Any, **__: Any) -> Self:
        """Change nothing: it is the service that computes."""
        return self

    eval = train = requires_grad_ = _unchanged
    enable_tiling = disable_tiling = enable_slicing = disable_slicing = _unchanged
    enable_xformers_memory_efficient_attention = set_attn_processor = _unchanged
    fuse_qkv_projections = unfuse_qkv_projections = _unchanged

    def _choose_dtype(self, given: Any) -> Any:
        chosen = given or self._info.dtype or "float32"
        dtype = getattr(self._torch, chosen) if isinstance(chosen, str) else chosen
        if dtype is self._torch.float16 and self.config.get("force_upcast"):
            return self._torch.float32
        return dtype

    def _as_sent(self, tensor: Any) -> Any:
        """Bring a tensor into a dtype that can be sent."""
        sent = (self._torch.float32, self._torch.float16, self._torch.bfloat16)
        return tensor if tensor.dtype in sent else tensor.to(self._torch.float32)

    def _develop(self, tensor: Any, like: Any, **options: Any) -> Any:
        job = self._client.submit(tensor, self._info.name, scaling=Scaling.NONE, **options)
        return job.result(self._timeout, as_="torch").to(like.device, like.dtype)

    def _ratio(self, name: str, known: int | None) -> int:
        found: int | None = known or self.config.get(name)
        if found is None:
            raise VaeDetailsError(
                f"the {name} of {self._info.name} is not known: give it in config=…, or have the "
                "service decode once"
            )
        return found

    def _statistic(self, name: str) -> Any:
        if name not in self._statistics:
            raise AttributeError(f"{self._info.name} has no {name} among its weights")
        return self._statistics[name]


def _find_config(info: VaeInfo, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Take the caller's configuration, else the service's, else the hub's.

    Raises:
        VaeDetailsError: nobody knows it.
    """
    if given is not None:
        return given
    return info.config if info.config is not None else _read_from_hub(info)


def _read_from_hub(info: VaeInfo) -> Mapping[str, Any]:
    unknown = (
        f"the configuration of {info.name} is not known: have the service decode once with it, "
        f"after which a worker has told it, or give it as config=…"
    )
    if info.source.startswith(_LOCAL_SOURCES):
        raise VaeDetailsError(unknown)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise VaeDetailsError(unknown) from error
    try:
        path = hub.hf_hub_download(
            info.source, "config.json", subfolder=info.subfolder, revision=info.revision
        )
        config: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VaeDetailsError(f"{unknown} (the hub's {info.source}: {error})") from error
    return config


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add what a local VAE would add: its class's defaults for what older files do not have."""
    name = str(config.get("_class_name", ""))
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        return config
    vae_class = getattr(diffusers, name, None) if name.startswith("Auto") else None
    if vae_class is None:
        return config
    parameters = inspect.signature(vae_class.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {**defaults, **config}


def _find_statistics(
    info: VaeInfo, given: Mapping[str, Any] | None
) -> Mapping[str, Sequence[float]]:
    """Take the statistics from the caller, else from the service.

    Raises:
        VaeDetailsError: the pipelines of this family need some that nobody knows. Told now, not
            when a picture has been made up to its decoding.
    """
    known = {**(info.buffers or {}), **(given or {})}
    needed = _STATISTICS.get(info.family, ())
    if missing := [name for name in needed if name not in known]:
        raise VaeDetailsError(
            f"{' and '.join(missing)} of {info.name} lie in its weights, which no worker has "
            "loaded yet: have the service decode once with it, or give them as buffers=…"
        )
    return known
