"""Classes of a picture over HTTP, from a network that `isvit export` wrote.

    isvit export runs/quickstart --format onnx
    python examples/serve.py runs/quickstart/export/model.onnx
    curl --data-binary @picture.png http://127.0.0.1:8000/classify

Needs the extra export, and fastapi and uvicorn.
"""

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from isvit_lightning.data.decoding import DecodingError, decode
from isvit_lightning.export.onnx import OnnxNetwork
from isvit_lightning.export.openvino import OpenVinoNetwork
from isvit_lightning.sources.preprocessing import Preprocessing

LARGEST = 2**24
"""Bytes of a picture."""


def application(path: Path, threads: int | None = None) -> FastAPI:
    """The service; the file itself tells how pictures are prepared and what its classes are called."""
    network = (OpenVinoNetwork if path.suffix == ".xml" else OnnxNetwork)(path, threads)
    given = network.metadata["preprocessing"]
    prepare = Preprocessing(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    transform, names = prepare.transform(), network.metadata["classes"]
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request, count: int = 5) -> list[dict[str, Any]]:
        content = await request.body()
        if len(content) > LARGEST:
            raise HTTPException(413, f"The picture has {len(content)} bytes, expected at most {LARGEST}.")
        try:
            shares = await run_in_threadpool(lambda: network(transform(decode(content))[None]).softmax(dim=1)[0])
        except DecodingError as error:
            raise HTTPException(422, f"The picture cannot be read: {error}.") from None
        best = shares.topk(max(1, min(count, len(shares))))
        labels = [names[place] if names else str(place) for place in best.indices.tolist()]
        return [{"class": name, "probability": share} for name, share in zip(labels, best.values.tolist(), strict=True)]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="model.onnx or model.xml")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(application(options.path, options.threads), port=options.port)
