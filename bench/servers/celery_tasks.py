"""The decoder behind a plain Celery task: latents and pictures in S3, one task at a time."""

import os
from typing import Any

import boto3
from botocore.config import Config
from celery import Celery
from celery.signals import worker_init
from decoding import Decoder

BUCKET = os.environ["BENCH_BUCKET"]
CONFIG = Config(
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)

app = Celery(broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True)

parts: dict[str, Any] = {}


@worker_init.connect
def prepare(**_: object) -> None:
    """Load the VAE, and open the store."""
    parts["decoder"] = Decoder()
    parts["s3"] = boto3.client("s3", endpoint_url=os.environ["BENCH_S3"], config=CONFIG)


@app.task
def decode(key: str) -> str:
    """Decode the latents under a key, and give the picture's key."""
    body = parts["s3"].get_object(Bucket=BUCKET, Key=key)["Body"].read()
    picture = parts["decoder"].png(body)
    made = f"{key}.png"
    parts["s3"].put_object(Bucket=BUCKET, Key=made, Body=picture, ContentType="image/png")
    return made
