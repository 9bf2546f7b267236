"""The application behind `strlab serve`: pictures in, text out, one page to try it, OpenAPI at /docs."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from common import __version__
from common.data.decode import BadImage, open_picture
from common.errors import UserError
from common.infer import pages, pp_ocr, shipped
from common.infer.images import as_array
from common.infer.recognizer import Prediction, Recognizer, open_recognizer
from common.serve.batcher import Batcher, Job, ModelFailed
from common.serve.guard import Guard, Limits
from common.serve.painting import Paint, add_route

RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last is what curl --data-binary sends
HERE = Path(__file__).parent


class Attention(BaseModel):
    """Maps of where each character was seen: `shape` [T, h, w], `data` the bytes 0 to 255 in base64."""

    shape: list[int]
    data: str


class FoundWord(BaseModel):
    """One word of a whole picture: `box` has its corners (x, y) in pixels, clockwise from the word's top left."""

    text: str
    confidence: float
    char_confidences: list[float]
    box: list[list[float]]


class Reading(BaseModel):
    """What was read in one picture. With `detect` the text is that of all words, the confidence their mean."""

    name: str | None = Field(None, description="name of the uploaded file")
    text: str
    confidence: float = Field(description="0 to 1, of the whole word")
    char_confidences: list[float] = Field(description="0 to 1, one for each character of the text")
    attention: Attention | None = None
    words: list[FoundWord] | None = Field(None, description="with `detect`: the words in reading order")
    error: str | None = Field(None, description="why the picture could not be read; the text is then empty")


class Answer(BaseModel):
    """The predictions, in the order of the pictures."""

    reader: str
    predictions: list[Reading]
    seconds: float


class Problem(BaseModel):
    """Why a request was refused."""

    error: str


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Readers:
    """The readers that this server offers: the one it was started with, and the shipped ones, opened when asked for."""

    def __init__(self, name: str, recognizer: Recognizer) -> None:
        self.default, self.open = name, {name: recognizer}
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        return list(dict.fromkeys([self.default, *(one.name for one in shipped.all_shipped())]))

    def get(self, name: str | None) -> Recognizer:
        """The reader of a name, opened now where it was not used before. Raises `Refused`."""
        name = name or self.default
        if name not in self.open:
            if name not in self.names():
                raise Refused(422, f"no reader is called {name!r}; there are: {', '.join(self.names())}")
            with self.lock:
                if name not in self.open:
                    first = self.open[self.default]
                    one = shipped.find(name)
                    one.check()
                    self.open[name] = open_recognizer(
                        one.path, device=str(first.device), batch_size=first.batch_size, upright=first.upright
                    )
        return self.open[name]

    def describe(self) -> list[dict[str, Any]]:
        """Name, model, characters and accuracy of each."""
        known = {one.name: one for one in shipped.all_shipped()}
        found = []
        for name in self.names():
            opened, one = self.open.get(name), known.get(name)
            charset = opened.charset if opened else str(one.metadata.get("charset", "")) if one else ""
            found.append({
                "name": name, "default": name == self.default, "model": opened.name if opened else one.model,
                "charset": charset, "accuracy": ", ".join(one.accuracies()) if one else "",
                "licence": str(one.metadata.get("licence", "Apache-2.0")) if one else "",
            })  # fmt: skip
        return found


def create_app(
    recognizer: Recognizer,
    name: str = "reader",
    limits: Limits | None = None,
    cors: Sequence[str] = (),
    paint: Paint | None = None,
) -> Guard:
    """The ASGI application.

    Args:
        recognizer: the default reader.
        name: what it is called in `/models`.
        limits: see `Limits`.
        cors: origins whose pages may use this server; none by default.
        paint: what paints words into pictures, see `common.serve.painting`; without it there is no /paint.
    """
    limits = limits or Limits()
    readers, batcher = Readers(name, recognizer), Batcher()
    pool = ThreadPoolExecutor(recognizer.workers, thread_name_prefix="decode")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        recognizer.warmup(0)
        app.state.ready = True
        yield
        app.state.ready = False
        batcher.stop()
        pool.shutdown()

    problems = {code: {"model": Problem} for code in (400, 401, 408, 413, 415, 422, 429, 503)}
    app = FastAPI(title="strlab", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
                  description="Reads the text in pictures of single words.")  # fmt: skip
    app.state.ready, app.state.readers, app.state.batcher = False, readers, batcher
    _handle_errors(app)

    @app.post("/read", response_model=Answer, response_model_exclude_none=True, responses=problems,
              openapi_extra={"requestBody": REQUEST_BODY})  # fmt: skip
    async def read(
        request: Request,
        reader: Annotated[str | None, Query(description="a name of /models; default: the first")] = None,
        attention: Annotated[bool, Query(description="also return attention maps, where the reader has them")] = False,
        detect: Annotated[bool, Query(description="whole pictures: find the words first, see /health")] = False,
    ) -> Any:
        """Read one picture or several: multipart files (`curl -F image=@a.png`), a raw body (`curl --data-binary
        @a.png`), or JSON `{"images": ["<base64 or data URL>", …]}`. 422 where not one of them can be read."""
        started = time.monotonic()
        names, images = await _images(request, limits.max_images)
        chosen = await asyncio.to_thread(readers.get, reader)
        try:
            work = _read_pages(pool, batcher, chosen, images, limits) if detect else None
            reading = work or _read(pool, batcher, chosen, images, attention, limits)
            predictions = await asyncio.wait_for(reading, limits.answer_s)
        except TimeoutError:
            raise Refused(503, f"the answer took over {limits.answer_s:g} seconds; send fewer pictures") from None
        found = [_reading(prediction, name) for prediction, name in zip(predictions, names)]
        answer = {"reader": reader or name, "predictions": found, "seconds": round(time.monotonic() - started, 4)}
        if all(prediction.error for prediction in predictions):
            return JSONResponse({"error": predictions[0].error, **answer}, 422)
        return answer

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The process is alive. `detector` is what `?detect=1` uses, null without one; `paints`: /paint is there."""
        return {"status": "ok", "model": recognizer.name, "charset": recognizer.charset, "version": __version__,
                "detector": pp_ocr.installed() or None, "paints": paint is not None}  # fmt: skip

    @app.get("/ready", responses={503: {"model": Problem}})
    async def ready() -> Any:
        """The server accepts work: the model is loaded and nothing is shutting down."""
        return {"status": "ready"} if app.state.ready else JSONResponse({"error": "not ready"}, 503)

    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        """The readers that `?reader=` may name, the default first."""
        return readers.describe()

    if paint is not None:
        add_route(app, paint, limits.max_pixels, limits.answer_s, problems)
    page, docs = ((HERE / file).read_text("utf-8") for file in ("page.html", "docs.html"))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> str:
        return page

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def documentation() -> str:
        return docs

    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"])
    guard = Guard(app, limits, policy(page + docs))
    guard.state = app.state
    return guard


def policy(html: str) -> str:
    """The Content-Security-Policy that lets the pages' own inline styles and scripts run and nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' blob: data:; "
        "connect-src 'self'; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _handle_errors(app: FastAPI) -> None:
    """Every error is JSON of one form."""

    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    async def failed(_: Request, error: ModelFailed) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})

    for kind, handler in ((Refused, refused), (RequestValidationError, invalid), (HTTPException, http),
                          (ModelFailed, failed)):  # fmt: skip
        app.add_exception_handler(kind, handler)


async def _images(request: Request, most: int) -> tuple[list[str | None], list[bytes]]:
    """Names and contents of the pictures of a request. Raises `Refused`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            form = await request.form(max_files=most, max_fields=most, max_part_size=1 << 20)
        except HTTPException as error:
            raise Refused(413 if "Too many" in str(error.detail) else 422, f"multipart: {error.detail}") from None
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        names, images = [one.filename for one in uploads], [await one.read() for one in uploads]
    elif kind == "application/json" or kind.endswith("+json"):
        images = await asyncio.to_thread(_json_images, await request.body())
        names = [None] * len(images)
    elif kind in RAW or kind.startswith("image/"):
        body = await request.body()
        names, images = [None], [body] if body else []
    else:
        raise Refused(415, f"{kind} is not taken; send multipart files, a raw picture, or JSON")
    if not images or not any(images):
        raise Refused(422, 'no picture was sent; send multipart files, a raw picture, or JSON {"images": ["…"]}')
    if len(images) > most:
        raise Refused(413, f"{len(images)} pictures; at most {most} are taken in a request")
    return names, images


def _json_images(body: bytes) -> list[bytes]:
    """The pictures of a JSON body; data URLs and line breaks in the base64 are fine. Raises `Refused`."""
    try:
        given = json.loads(body)
        given = given["images"] if "images" in given else [given["image"]]
        if not isinstance(given, list):
            raise TypeError
        found = []
        for text in given:
            text = text.partition(",")[2] if text.startswith("data:") else text
            found.append(base64.b64decode(re.sub(r"\s+", "", text), validate=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise Refused(422, 'the body is not JSON of the form {"images": ["<base64>", …]}') from None
    return found


def pixels_of(data: bytes) -> int:
    """Pixels that an encoded picture announces, without decoding it; 0 for what is no picture."""
    try:
        width, height = open_picture(data, max_pixels=sys.maxsize).size
    except BadImage:
        return 0
    return width * height


async def _read(
    pool: ThreadPoolExecutor,
    batcher: Batcher,
    recognizer: Recognizer,
    images: list[bytes],
    attention: bool,
    limits: Limits,
) -> list[Prediction]:
    """Decode in the pool, read in the batcher; one prediction for each picture."""
    _check_pixels(images, limits)
    loop = asyncio.get_running_loop()

    def prepare(data: bytes) -> np.ndarray | str:
        try:
            return recognizer.prepare(data)
        except BadImage as error:
            return str(error)

    fitted = await asyncio.gather(*(loop.run_in_executor(pool, prepare, data) for data in images))
    good = [image for image in fitted if not isinstance(image, str)]
    found = iter(await asyncio.wrap_future(batcher.submit(Job(recognizer, good, attention))) if good else [])
    return [Prediction("", 0.0, error=one) if isinstance(one, str) else next(found) for one in fitted]


def _check_pixels(images: list[bytes], limits: Limits) -> None:
    """Raise `Refused` where the pictures of a request announce too many pixels together."""
    pixels = sum(pixels_of(data) for data in images)
    if pixels > limits.max_pixels:
        raise Refused(413, f"{pixels:,} pixels in all; at most {limits.max_pixels:,} are taken in a request")


async def _read_pages(
    pool: ThreadPoolExecutor, batcher: Batcher, recognizer: Recognizer, images: list[bytes], limits: Limits
) -> list[Prediction]:
    """Find the words of whole pictures in the pool and read them in the batcher; one prediction for each picture, whose
    `extra["words"]` has the words."""
    _check_pixels(images, limits)
    try:
        detector = await asyncio.to_thread(pages.detector)
    except UserError as error:
        raise Refused(422, f"detect: {error}") from None
    loop = asyncio.get_running_loop()

    def find(data: bytes) -> tuple[np.ndarray, list[np.ndarray]] | str:
        try:
            boxes, crops = detector.words(as_array(data, recognizer.upright, recognizer.published))
            return boxes, [recognizer.fit(crop) for crop in crops]
        except BadImage as error:
            return str(error)

    answers = []
    for found in await asyncio.gather(*(loop.run_in_executor(pool, find, data) for data in images)):
        if isinstance(found, str):
            answers.append(Prediction("", 0.0, error=found))
            continue
        boxes, crops = found
        read = await asyncio.wrap_future(batcher.submit(Job(recognizer, crops))) if crops else []
        confidence = float(np.mean([one.confidence for one in read])) if read else 0.0
        words = [{**_reading(one, None), "box": box.round(1).tolist()} for one, box in zip(read, boxes)]
        answers.append(Prediction(" ".join(one.text for one in read), confidence, extra={"words": words}))
    return answers


def _reading(prediction: Prediction, name: str | None) -> dict[str, Any]:
    """A prediction as plain data."""
    reading: dict[str, Any] = {
        "text": prediction.text,
        "confidence": round(float(prediction.confidence), 6),
        "char_confidences": [round(float(value), 6) for value in prediction.char_confidences][: len(prediction.text)],
    }
    if name is not None:
        reading["name"] = name
    if "words" in prediction.extra:
        reading["words"] = prediction.extra["words"]
    if prediction.error is not None:
        reading["error"] = prediction.error
    if prediction.attention is not None:
        maps = np.asarray(prediction.attention, np.float32)
        maps = maps[:, None, :] if maps.ndim == 2 else maps
        scaled = np.rint(255 * maps / max(float(maps.max()), 1e-9)).clip(0, 255).astype(np.uint8)
        reading["attention"] = {"shape": list(maps.shape), "data": base64.b64encode(scaled.tobytes()).decode()}
    return reading


REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": {
                "type": "array", "items": {"type": "string", "format": "binary"}}}}},
        "application/json": {
            "schema": {"type": "object", "required": ["images"], "properties": {"images": {
                "type": "array", "items": {"type": "string", "description": "base64 or data URL"}}}}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}  # fmt: skip
