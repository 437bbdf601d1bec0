"""Generate latents with a diffusers pipeline while Darkroom decodes those that are done.

    python examples/generate_and_decode.py TARGET

The pipeline here is a tiny one with random weights, so that the example runs anywhere; its pictures
are noise. With a real one, only `make_pipeline` and the name of the VAE change. Needs a running
service (`make up`) and `pip install ./client pillow diffusers torch transformers`.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from darkroom import Client, RemoteVAE

PROMPTS = 6


def make_pipeline(client: Client) -> StableDiffusionPipeline:
    """Make a pipeline without a VAE of its own: the memory of its decoder stays free."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae = RemoteVAE("demo", client)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main(target: Path) -> None:
    """Hand each prompt's latents over, and generate the next while they are decoded."""
    target.mkdir(parents=True, exist_ok=True)
    with Client() as client:
        pipeline = make_pipeline(client)
        jobs = []
        for number in range(PROMPTS):
            latents = pipeline(
                prompt_embeds=torch.randn(1, 4, 16),
                negative_prompt_embeds=torch.zeros(1, 4, 16),
                num_inference_steps=4,
                height=256,
                width=256,
                output_type="latent",
            ).images
            jobs.append(client.submit(latents, vae="demo", metadata={"prompt": number}))
            print("generated", number)
        for job in client.as_completed(jobs):
            path = target / f"{job.info.metadata['prompt']}.png"
            job.result().save(path)
            print("developed", path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("pictures"))
