"""The pipelines of diffusers with tiny seeded components: what pictures have to look like.

A case runs the real pipeline of a family. Run it twice, once with output_type "latent" and once
with "pt": the pictures of the second run are what decoding the latents of the first has to give.

The VAEs are narrow, but have the latent channels, the compression and the statistics of the
models that they stand for, so that a rule which is wrong for those is wrong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn

STEPS = 2
TOKENS, WIDTH = 4, 16
"""How many tokens a prompt has, and how wide its embeddings are."""

SPREAD = 0.225
"""The standard deviation of a VAE's last layer, as a part of its range."""


@dataclass(frozen=True)
class Size:
    """What is asked of a pipeline: pixels, videos or pictures at once, frames."""

    height: int
    width: int
    batch: int = 1
    num_frames: int | None = None


@dataclass(frozen=True)
class Case:
    """A pipeline with its VAE.

    `parts` makes the components but for the VAE, and the pipeline's own flags. `conditions` has
    the shape of each embedding and mask of the prompt, without the batch. `options` are further
    arguments of the call. `asks` names what of the size a job must be told. `span` is what the
    VAE's last layer gives for black and for white.
    """

    name: str
    family: str
    pipeline: type[DiffusionPipeline]
    vae: Callable[[], nn.Module]
    parts: Callable[[], dict[str, Any]]
    conditions: Mapping[str, tuple[int, ...]]
    sizes: tuple[Size, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    asks: tuple[str, ...] = ()
    span: tuple[float, float] = (-1.0, 1.0)

    def make_vae(self) -> nn.Module:
        """Make the VAE with random weights, the same each time, and with contrast."""
        with _seeded(0):
            vae = self.vae().eval()
            _fill_statistics(vae)
        with torch.no_grad():
            self._stretch(vae)
        return vae

    def run(self, vae: nn.Module, size: Size, output_type: str) -> Tensor:
        """Run the pipeline, the same way each time.

        Args:
            vae: from `make_vae`.
            size: one of `sizes`, or another that the pipeline takes.
            output_type: "latent" or "pt".

        Returns:
            For "latent" the latents as the pipeline leaves them. For "pt" values in [0, 1]:
            pictures as [B, 3, H, W], videos as [B, F, 3, H, W].
        """
        with _seeded(1):
            pipe = _assemble(self.pipeline, vae=vae, **self.parts())
            conditions = {
                name: torch.ones(size.batch, *shape, dtype=torch.bool)
                if name.endswith("_mask")
                else torch.randn(size.batch, *shape)
                for name, shape in self.conditions.items()
            }
        frames = {} if size.num_frames is None else {"num_frames": size.num_frames}
        made: Tensor = pipe(
            height=size.height,
            width=size.width,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type=output_type,
            return_dict=False,
            **frames,
            **conditions,
            **self.options,
        )[0]
        return made

    def needs(self, size: Size) -> dict[str, int]:
        """Say what a job must be told besides the latents, by the name of the parameter."""
        return {name: getattr(size, name) for name in self.asks}

    def _stretch(self, vae: nn.Module) -> None:
        """Set the last layer so that each channel spans the range: random VAEs give flat grey."""
        calls: list[tuple[Any, Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda layer, _, out: calls.append((layer, out)))
            for layer in vae.modules()
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear))
        ]
        self.run(vae, self.sizes[0], "pt")
        for hook in hooks:
            hook.remove()
        last = calls[-1][0]
        channel = -1 if isinstance(last, nn.Linear) else 1
        given = [out.movedim(channel, 0).flatten(1) for layer, out in calls if layer is last]
        # Rounded, so that the weights do not hang on the number of threads.
        std, mean = (
            measured.round(decimals=4) for measured in torch.std_mean(torch.cat(given, 1), dim=1)
        )
        black, white = self.span
        gain = SPREAD * (white - black) / std
        last.weight *= gain.view(-1, *[1] * (last.weight.ndim - 1))
        last.bias.copy_((last.bias - mean) * gain + (black + white) / 2)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave the generator of all others as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _fill_statistics(vae: nn.Module) -> None:
    """Give the statistics that a VAE keeps among its weights values that change pictures."""
    for name, buffer in vae.named_buffers():
        if name.endswith("mean"):
            buffer.normal_(0, 0.3)
        elif name.endswith(("std", "var")):
            buffer.uniform_(0.01, 2)  # small ones, so that an epsilon added to them shows


def _assemble(pipeline: type[DiffusionPipeline], **parts: Any) -> DiffusionPipeline:
    """Make a pipeline without what only prompts need: text encoders and tokenizers."""
    absent = {
        name: None
        for name, parameter in signature(pipeline.__init__).parameters.items()
        if parameter.default is Parameter.empty and name != "self" and name not in parts
    }
    pipe = pipeline(**absent, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _flow(model: Callable[[], nn.Module], **config: Any) -> dict[str, Any]:
    """Give the parts of a pipeline that matches flows."""
    return {"transformer": model(), "scheduler": FlowMatchEulerDiscreteScheduler(**config)}


KL = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
UNPROJECTED = {"use_quant_conv": False, "use_post_quant_conv": False}
UNGUIDED = {"guidance_scale": 1.0}
PROMPT = {"prompt_embeds": (TOKENS, WIDTH)}
POOLED = PROMPT | {"pooled_prompt_embeds": (WIDTH,)}
MASKED = PROMPT | {"prompt_attention_mask": (TOKENS,)}
PICTURES = (Size(64, 64), Size(48, 96), Size(80, 64, batch=2))
UNEVEN = (Size(64, 64), Size(72, 104), Size(56, 88, batch=2))
"""Sizes that pipelines with packed latents round down, to multiples of 16 pixels."""


def _diffused(**config: Any) -> dict[str, Any]:
    """Give the parts of a pipeline with a UNet that predicts noise."""
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        **config,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return {"unet": unet, "scheduler": scheduler}


SD = partial(
    Case,
    family="sd",
    pipeline=StableDiffusionPipeline,
    parts=lambda: _diffused() | {"requires_safety_checker": False},
    conditions=PROMPT,
    sizes=PICTURES,
    options=UNGUIDED,
)
SDXL = partial(
    Case,
    family="sd",
    pipeline=StableDiffusionXLPipeline,
    # A picture's size and crop are six numbers, each embedded in 8 dimensions.
    parts=lambda: (
        _diffused(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
        | {"add_watermarker": False}
    ),
    conditions=POOLED,
    sizes=PICTURES,
    options=UNGUIDED,
)

SANA = partial(
    Case,
    family="sana",
    pipeline=SanaPipeline,
    vae=partial(
        AutoencoderDC,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(8, 8, 16, 32, 32, 32),
        decoder_block_out_channels=(8, 8, 16, 32, 32, 32),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ),
    parts=lambda: {
        "transformer": SanaTransformer2DModel(
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=16,
        ),
        "scheduler": DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    },
    conditions=MASKED,
)

WAN = partial(Case, family="wan", pipeline=WanPipeline, conditions=PROMPT, options=UNGUIDED)
WAN_22_MEAN = [
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
]
WAN_22_STD = [
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
]


def _wan(channels: int) -> dict[str, Any]:
    """Give the parts of a Wan pipeline for latents with so many channels."""
    return _flow(
        partial(
            WanTransformer3DModel,
            num_layers=1,
            attention_head_dim=12,
            num_attention_heads=2,
            in_channels=channels,
            out_channels=channels,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=32,
            rope_max_seq_len=32,
        ),
        shift=5.0,
    )


LTX = partial(
    Case,
    family="ltx-video",
    pipeline=LTXPipeline,
    parts=lambda: _flow(
        partial(
            LTXVideoTransformer3DModel,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=WIDTH,
        )
    ),
    conditions=MASKED,
    sizes=(
        Size(64, 64, num_frames=9),
        Size(64, 96, num_frames=1),
        Size(96, 64, batch=2, num_frames=12),
        Size(64, 128, num_frames=25),
    ),
    options=UNGUIDED,
    asks=("height", "width", "num_frames"),
)
COGVIDEOX = partial(
    Case, family="cogvideox", pipeline=CogVideoXPipeline, conditions=PROMPT, options=UNGUIDED
)
COGVIDEOX_VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def _cogvideox(**config: Any) -> dict[str, Any]:
    """Give the parts of a CogVideoX pipeline."""
    transformer = CogVideoXTransformer3DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        time_embed_dim=16,
        text_embed_dim=WIDTH,
        max_text_seq_length=TOKENS,
        **config,
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    return {"transformer": transformer, "scheduler": scheduler}


_ALL = (
    SD(name="sd", vae=partial(AutoencoderKL, **KL, scaling_factor=0.18215)),
    SD(
        name="sd-tiny",
        vae=partial(
            AutoencoderTiny,
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
        ),
        span=(0.0, 1.0),
    ),
    SDXL(name="sdxl", vae=partial(AutoencoderKL, **KL, scaling_factor=0.13025)),
    SDXL(
        name="sdxl-statistics",
        vae=partial(
            AutoencoderKL,
            **KL,
            scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        ),
    ),
    Case(
        name="sd3",
        family="sd3",
        pipeline=StableDiffusion3Pipeline,
        vae=partial(
            AutoencoderKL,
            **KL,
            **UNPROJECTED,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        parts=lambda: _flow(
            partial(
                SD3Transformer2DModel,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                caption_projection_dim=16,
                pooled_projection_dim=WIDTH,
                pos_embed_max_size=32,
            ),
            shift=3.0,
        ),
        conditions=POOLED,
        sizes=PICTURES,
        options=UNGUIDED,
    ),
    Case(
        name="flux",
        family="flux",
        pipeline=FluxPipeline,
        vae=partial(
            AutoencoderKL,
            **KL,
            **UNPROJECTED,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        parts=lambda: _flow(
            partial(
                FluxTransformer2DModel,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        conditions=POOLED,
        sizes=UNEVEN,
        asks=("height", "width"),
    ),
    Case(
        name="flux2",
        family="flux2",
        pipeline=Flux2Pipeline,
        vae=partial(AutoencoderKLFlux2, **KL),
        parts=lambda: _flow(
            partial(
                Flux2Transformer2DModel,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                timestep_guidance_channels=WIDTH,
                axes_dims_rope=(4, 4, 4, 4),
            )
        ),
        conditions=PROMPT,
        sizes=UNEVEN,
        asks=("height", "width"),
    ),
    Case(
        name="qwen-image",
        family="qwen-image",
        pipeline=QwenImagePipeline,
        vae=partial(AutoencoderKLQwenImage, base_dim=8, num_res_blocks=1),
        parts=lambda: _flow(
            partial(
                QwenImageTransformer2DModel,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        conditions=PROMPT | {"prompt_embeds_mask": (TOKENS,)},
        sizes=UNEVEN,
        options={"true_cfg_scale": 1.0},
        asks=("height", "width"),
    ),
    SANA(
        name="sana",
        sizes=(Size(64, 64), Size(96, 128), Size(64, 96, batch=2)),
        options=UNGUIDED | {"use_resolution_binning": False},
    ),
    SANA(
        name="sana-binned",
        # Made at 512 x 512, 416 x 576, 448 x 576 and 640 x 384 pixels, then resized and cropped.
        sizes=(Size(512, 512), Size(96, 128), Size(250, 333), Size(110, 65, batch=2)),
        options=UNGUIDED | {"use_resolution_binning": True},
        asks=("height", "width"),
    ),
    Case(
        name="hunyuan-video",
        family="hunyuan-video",
        pipeline=HunyuanVideoPipeline,
        vae=partial(
            AutoencoderKLHunyuanVideo,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        parts=lambda: _flow(
            partial(
                HunyuanVideoTransformer3DModel,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                text_embed_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                rope_axes_dim=(4, 6, 6),
            ),
            shift=7.0,
        ),
        conditions=POOLED | MASKED,
        # From 17 frames on, the VAE decodes pieces of time and blends them.
        sizes=(
            Size(64, 64, num_frames=5),
            Size(64, 96, num_frames=1),
            Size(48, 32, batch=2, num_frames=12),
            Size(32, 48, num_frames=17),
            Size(48, 32, num_frames=33),
        ),
    ),
    WAN(
        name="wan-2.1",
        vae=partial(AutoencoderKLWan, base_dim=8, num_res_blocks=1),
        sizes=(
            Size(64, 64, num_frames=5),
            Size(64, 96, num_frames=1),
            Size(48, 32, batch=2, num_frames=11),
            Size(32, 48, num_frames=21),
        ),
        parts=lambda: _wan(16),
    ),
    WAN(
        name="wan-2.2",
        vae=partial(
            AutoencoderKLWan,
            base_dim=8,
            num_res_blocks=1,
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=WAN_22_MEAN,
            latents_std=WAN_22_STD,
        ),
        # Rounded down to multiples of 32 pixels.
        sizes=(
            Size(64, 64, num_frames=5),
            Size(80, 112, num_frames=1),
            Size(96, 64, batch=2, num_frames=11),
            Size(32, 64, num_frames=21),
        ),
        parts=lambda: _wan(48) | {"expand_timesteps": True},
    ),
    LTX(
        name="ltx-video",
        vae=partial(
            AutoencoderKLLTXVideo,
            block_out_channels=(8, 8, 16, 16),
            decoder_block_out_channels=(8, 8, 16, 16),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
        ),
    ),
    LTX(
        name="ltx-video-timed",
        # As of LTX-Video 0.9.5; 0.9.1 adds noise of its own while decoding, drawn from no seed.
        vae=partial(
            AutoencoderKLLTXVideo,
            block_out_channels=(8, 8, 8, 16, 16),
            down_block_types=("LTXVideo095DownBlock3D",) * 4,
            spatio_temporal_scaling=(True,) * 4,
            layers_per_block=(1,) * 5,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            decoder_block_out_channels=(8, 16, 32),
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_layers_per_block=(1,) * 4,
            decoder_inject_noise=(False,) * 4,
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
    ),
    COGVIDEOX(
        name="cogvideox",
        vae=partial(AutoencoderKLCogVideoX, **COGVIDEOX_VAE),
        parts=_cogvideox,
        # An even number of latent frames gives four times as many, and is not padded here.
        sizes=(
            Size(64, 64, num_frames=9),
            Size(64, 96, num_frames=1),
            Size(48, 32, batch=2, num_frames=8),
            Size(32, 48, num_frames=17),
        ),
    ),
    COGVIDEOX(
        name="cogvideox-1.5",
        vae=partial(
            AutoencoderKLCogVideoX,
            **COGVIDEOX_VAE,
            scaling_factor=0.7,
            invert_scale_latents=True,
        ),
        parts=lambda: _cogvideox(
            patch_size_t=2, patch_bias=False, use_rotary_positional_embeddings=True
        ),
        # An odd number of latent frames is padded by one, an even one is not.
        sizes=(
            Size(64, 64, num_frames=9),
            Size(64, 96, num_frames=1),
            Size(48, 32, batch=2, num_frames=8),
            Size(32, 48, num_frames=13),
            Size(48, 32, num_frames=17),
        ),
        asks=("num_frames",),
    ),
    Case(
        name="mochi",
        family="mochi",
        pipeline=MochiPipeline,
        # Its norms always have 32 groups, so no layer can be narrower.
        vae=partial(
            AutoencoderKLMochi,
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            layers_per_block=(1,) * 5,
        ),
        parts=lambda: _flow(
            partial(
                MochiTransformer3DModel,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                text_embed_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                time_embed_dim=WIDTH,
            ),
            invert_sigmas=True,
        ),
        conditions=MASKED,
        sizes=(
            Size(32, 32, num_frames=7),
            Size(48, 64, num_frames=1),
            Size(32, 16, batch=2, num_frames=10),
            Size(16, 32, num_frames=19),
        ),
        options=UNGUIDED,
    ),
)

CASES: Mapping[str, Case] = {case.name: case for case in _ALL}
"""Every case by its name."""
