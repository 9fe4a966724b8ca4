"""The floor of `bench_server`: FastAPI on uvicorn that parses a JSON body and returns it."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ready"}


@app.post("/v1/chat/completions")
async def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Returns what it was sent."""
    return body


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
