"""A third-party package adds a modality: installed and named in models.toml, it takes tasks; nothing here changes."""

import base64
import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from legit_embedding.testing.worker import WorkerProcess
from tests.acceptance.site import IMAGES

PACKAGE = Path(__file__).with_name("sample_plugin")
RATE = 16_000


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package, built and installed into a folder of its own, for the worker's PYTHONPATH."""
    target = tmp_path_factory.mktemp("plugin")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*command, str(PACKAGE)], check=True, capture_output=True, text=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def worker(server, installed, tmp_path_factory):
    models = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text('[models.sound]\nadapter = "spectrum"\nbands = 24\n')
    env = {"LEGIT_BROKER_URL": server.url(), "LEGIT_MODELS": str(models), "PYTHONPATH": str(installed)}
    with WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env) as running:
        yield running


def recording(hertz):
    """Half a second of one tone, as a base64 WAV."""
    samples = np.sin(2 * np.pi * hertz * np.arange(RATE // 2) / RATE) * 20_000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@pytest.mark.usefixtures("worker")
def test_a_plugins_model_embeds_what_ours_cannot(site):
    items = [{"id": str(hertz), "data": recording(hertz)} for hertz in (440, 450, 5000)]
    entries = site.embed(IMAGES, {"model": "sound", "items": [*items, {"data": base64.b64encode(b"RIFFno").decode()}]})
    assert [entry.error_type or entry.status for entry in entries] == ["ok", "ok", "ok", "undecodable"]
    assert {(entry.modality, entry.model, entry.dim) for entry in entries[:3]} == {("audio", "sound", 24)}
    near, far = (float(entries[0].embedding @ entries[other].embedding) for other in (1, 2))
    assert near > 0.99 > far
