"""`POST /paint`: a word painted into a picture, by the generator of a project.

A project offers this with a module `paint` that has a function

    paint(image uint8 [h, w, 3], box (left, top, right, bottom), text, *, weights, seed) -> uint8 [h, w, 3]

where weights None are those that ship.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from common import registry
from common.data.decode import BadImage, open_picture
from common.errors import UserError
from common.infer.images import as_array
from common.infer.pictures import png

Paint = Callable[..., np.ndarray]
"""paint(image uint8 [h, w, 3], box, text, seed=…) -> uint8 [h, w, 3]. Raises `UserError`."""
MOST_WAITING = 4  # pictures that may wait for the painter, which takes seconds for each


class PaintRequest(BaseModel):
    """A picture in base64 (or a data URL), the region in its pixels, and the word."""

    image: str
    box: list[float] = Field(min_length=4, max_length=4, description="left, top, right, bottom")
    text: str = Field(min_length=1, max_length=25)
    seed: int = Field(20, ge=0, lt=2**31, description="another one paints the word in another way")


def find_painter(weights: Path | None) -> Paint:
    """The painter of the first project that has one, with these weights, tried once so that wrong ones are refused now.

    None stands for the weights that ship. Raises `UserError` where no project paints or the weights do not fit.
    """
    modules = (registry.project_module(project, "paint") for project in sorted(registry.project_modules()))
    module = next((module for module in modules if module is not None), None)
    if module is None:
        raise UserError("--paint: no installed project paints words")
    paint = functools.partial(module.paint, weights=weights)
    paint(np.full((64, 128, 3), 200, np.uint8), (16, 16, 112, 48), "a", seed=1)
    return paint


def add_route(app: FastAPI, paint: Paint, max_pixels: int, answer_s: float, problems: dict[int | str, Any]) -> None:
    """Add `POST /paint` to the application. One picture is painted at a time, in a thread of its own."""
    pool, waiting = ThreadPoolExecutor(1, thread_name_prefix="painter"), [0]

    def work(request: PaintRequest, data: bytes) -> bytes:
        return png(paint(as_array(data), request.box, request.text, seed=request.seed))

    @app.post("/paint", response_class=Response, responses={200: {"content": {"image/png": {}}}, **problems})
    async def paint_word(request: PaintRequest) -> Response:
        """Paint a word into a region of a picture; the answer is the whole picture as PNG, unchanged elsewhere."""
        try:
            text = request.image.partition(",")[2] if request.image.startswith("data:") else request.image
            data = base64.b64decode(re.sub(r"\s+", "", text), validate=True)
            open_picture(data, max_pixels=max_pixels)  # refuses what is no picture or too large
        except (binascii.Error, BadImage) as error:
            return JSONResponse({"error": f"image: {error}"}, 422)
        if waiting[0] >= MOST_WAITING:
            return JSONResponse({"error": "others are painting; try again"}, 503, {"Retry-After": "5"})
        waiting[0] += 1
        future = asyncio.get_running_loop().run_in_executor(pool, work, request, data)
        future.add_done_callback(lambda _: waiting.__setitem__(0, waiting[0] - 1))
        try:
            painted = await asyncio.wait_for(asyncio.shield(future), answer_s)
        except TimeoutError:
            return JSONResponse({"error": f"painting took over {answer_s:g} seconds"}, 503)
        except UserError as error:
            return JSONResponse({"error": str(error).replace("--", "")}, 422)
        return Response(painted, media_type="image/png")
