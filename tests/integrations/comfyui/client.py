"""A client of a running ComfyUI, for its own Python (aiohttp comes with it).

python client.py URL WORKFLOW OUT [--interrupt]

Queues the workflow of API form, follows the websocket to the end, and writes into OUT: messages.json (the text messages
in order), preview-NN.bin (binary messages), history.json, and the images as image-NN.png. With --interrupt it asks for
an interrupt at the first preview.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp

CLIENT = "arcflow-test"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


async def main(url: str, workflow: str, out: str, *options: str) -> None:
    messages, frames = [], 0
    folder = Path(out)
    async with aiohttp.ClientSession(url) as session, session.ws_connect(f"/ws?clientId={CLIENT}") as socket:
        body = {"prompt": json.loads(Path(workflow).read_text(encoding="utf-8")), "client_id": CLIENT}
        async with session.post("/prompt", json=body) as answer:
            queued = await answer.json()
            if answer.status != 200:
                sys.exit(json.dumps(queued))
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                (folder / f"preview-{frames:02}.bin").write_bytes(message.data)
                frames += 1
                if "--interrupt" in options and frames == 1:
                    await session.post("/interrupt")
                continue
            messages.append(json.loads(message.data))
            if messages[-1]["type"] in ENDS:
                break
        (folder / "messages.json").write_text(json.dumps(messages), encoding="utf-8")
        history = None
        for _ in range(100):  # It is written after the last message is sent.
            async with session.get(f"/history/{queued['prompt_id']}") as answer:
                history = (await answer.json()).get(queued["prompt_id"])
            if history is not None:
                break
            await asyncio.sleep(0.1)
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
        images = [image for output in history["outputs"].values() for image in output.get("images", [])]
        for index, image in enumerate(images):
            async with session.get("/view", params=image) as answer:
                (folder / f"image-{index:02}.png").write_bytes(await answer.read())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
