"""Receive Darkroom's webhooks in a FastAPI application, and verify that they are Darkroom's.

    DARKROOM_WEBHOOK_SECRET=whsec_… uvicorn examples.webhook_receiver:app --port 9000

and submit with `callback_url=http://127.0.0.1:9000/hook`. `make up` prints its secret and allows
callbacks to loopback. Needs `pip install fastapi uvicorn httpx standardwebhooks`.
"""

import os
from pathlib import Path

import httpx
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

PICTURES = Path(os.environ.get("PICTURES", "pictures"))

app = FastAPI()
webhook = Webhook(os.environ["DARKROOM_WEBHOOK_SECRET"])
seen: set[str] = set()


@app.post("/hook", status_code=204)
async def receive(request: Request, tasks: BackgroundTasks) -> Response:
    """Answer at once; what takes time is done after the answer."""
    try:
        event = webhook.verify(await request.body(), dict(request.headers))
    except WebhookVerificationError as error:
        raise HTTPException(401, "this is not from Darkroom") from error
    # A webhook comes at least once, always under the same id.
    message_id = request.headers["webhook-id"]
    if message_id not in seen:
        seen.add(message_id)
        if event["type"] == "job.succeeded":
            tasks.add_task(fetch, event["data"])
    return Response(status_code=204)


def fetch(job: dict) -> None:
    """Save what a job made; the links are valid for an hour."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for index, output in enumerate(job["outputs"]):
        extension = output["content_type"].rpartition("/")[2]
        content = httpx.get(output["url"]).content
        (PICTURES / f"{job['id']}-{index}.{extension}").write_bytes(content)
        print("saved", job["id"], flush=True)
