"""What a running service does when something under it breaks."""

import json
import os
import signal
import time
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.generated.service import copy_sample, run

pytestmark = pytest.mark.slow


def test_a_killed_worker_fails_open_requests_and_comes_back(tmp_path: Path) -> None:
    """SIGKILL on the worker ends an open stream with an error within a second; the supervisor brings it back."""
    spec = copy_sample("01-complete-python", "stdlib-coder", tmp_path)
    with run(spec, tmp_path / "cache") as service, OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        service.wait_for_readyz(200)
        stream = client.completions.create(
            model="stdlib-coder", prompt="import os\n", max_tokens=1500, temperature=1.5, stream=True
        )
        next(iter(stream))

        for pid in service.workers():
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(openai.APIError):
            list(stream)
        noticed = time.monotonic() - killed

        assert noticed < 1
        assert service.readyz()[0] == 503
        service.wait_for_readyz(200)
        assert client.completions.create(model="stdlib-coder", prompt="import ", max_tokens=4).choices


@pytest.mark.parametrize("damage", ["missing", "truncated", "lying"])
def test_damaged_weights_are_named_while_the_api_stays_up(tmp_path: Path, damage: str) -> None:
    """A worker whose weight file is damaged ends for good, and the API says which file it was."""
    spec = copy_sample("01-complete-python", "stdlib-coder", tmp_path)
    damaged = _damage(tmp_path / "models" / "stdlib-coder" / "model.safetensors", damage)

    with run(spec, tmp_path / "cache") as service:
        service.wait_for_readyz(503, containing="failed")
        service.wait_for_log("cannot start")
        _, body = service.readyz()

        assert damaged in body
        assert not service.workers()


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C ends the service with exit code 0 and every process it started."""
    spec = copy_sample("01-complete-python", "stdlib-coder", tmp_path)
    with run(spec, tmp_path / "cache") as service:
        service.wait_for_readyz(200)
        started = service.processes()

        service.process.send_signal(signal.SIGINT)
        code = service.process.wait(timeout=30)

    assert code == 0
    assert len(started) >= 2
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def _damage(weights: Path, damage: str) -> str:
    """Damages the weights; gives the name of the file that must be named."""
    if damage == "missing":
        first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
        weights.rename(weights.with_name(first))
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": first, "model.norm.weight": second}}
        weights.with_name("model.safetensors.index.json").write_text(json.dumps(index))
        return second
    if damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    else:
        content = weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length].replace(b'"BF16"', b'"F32" ', 1)
        weights.write_bytes(content[:8] + header + content[8 + length :])
    return weights.name
