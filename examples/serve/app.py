"""A published LaSCL model over HTTP: `curl --data-binary @speech.wav 'http://localhost:8000/?top_k=3'`.

The model is that of LASCL_MODEL (a name on the Hub, or a folder with its files) and LASCL_REVISION (a branch such as
fold-3). Its own `handler.py` answers, as on an Inference Endpoint; LaSCL need not be installed.
"""

import importlib.util
import os
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from huggingface_hub import snapshot_download


MAX_MB = 50
name = os.environ["LASCL_MODEL"]
folder = name if os.path.isdir(name) else snapshot_download(name, revision=os.environ.get("LASCL_REVISION"))
spec = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
recognise = handler.EndpointHandler(folder)
app = FastAPI(title="LaSCL")


@app.post("/")
async def answer(request: Request, top_k: int | None = None, labels: str | None = None, window_s: float | None = None):
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > MAX_MB * 1_000_000:
            raise HTTPException(413, f"At most {MAX_MB} MB are taken.")
    given = {"top_k": top_k, "labels": labels, "window_s": window_s}
    parameters = {key: value for key, value in given.items() if value is not None}
    try:
        return await run_in_threadpool(recognise, {"inputs": bytes(content), "parameters": parameters})
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
