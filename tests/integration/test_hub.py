"""Models from the hub, through its own client, from a stand-in on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.clip import OpenClipAdapter
from legit_embedding.models.text import TransformersAdapter
from legit_embedding.testing.checkpoints import save_open_clip, save_small_bert
from legit_embedding.values import Options

VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Repositories as they are: with more in them than anybody needs."""
    root = tmp_path_factory.mktemp("hub") / "owner"
    save_open_clip(root / "clip", VIT)
    (root / "clip" / "open_clip_pytorch_model.bin").write_bytes(b"not to be downloaded")
    save_open_clip(root / "empty", VIT)
    (root / "empty" / "open_clip_model.safetensors").unlink()
    save_small_bert(root / "bert", dense=16)
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "model.fp16.safetensors"):
        path = root / "bert" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not to be downloaded")
    save_small_bert(root / "pickled")
    torch.save(load_file(root / "pickled" / "model.safetensors"), root / "pickled" / "pytorch_model.bin")
    (root / "pickled" / "model.safetensors").unlink()
    save_small_bert(root / "config-only")
    (root / "config-only" / "model.safetensors").unlink()
    return root


@pytest.fixture(scope="module")
def session(repositories, tmp_path_factory):
    """What a process of its own made of them; see `hub_client.py`."""
    script = Path(__file__).with_name("hub_client.py")
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(repositories.parent)],
        capture_output=True,
        text=True,
        check=False,
        env={**own, "HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "log": done.stderr}


@pytest.fixture(scope="module")
def outcome(session):
    return session["outcome"]


def local(adapter, **entry):
    name = "open_clip" if adapter is OpenClipAdapter else "transformers"
    spec = ModelSpec(key="m", adapter=name, device="cpu", dtype="float32", **entry)
    return adapter().load(spec, InputLimits(max_pixels=1)).fingerprint(Options())


def test_a_clip_repository_gives_what_the_same_files_give_locally(outcome, repositories):
    expected = local(OpenClipAdapter, weights=str(repositories / "clip"))
    assert outcome["clip"] == {"fingerprint": expected, "dim": 24}
    assert outcome["clip at a tag"] == outcome["clip"]


def test_a_text_repository_gives_what_the_same_files_give_locally(outcome, repositories):
    expected = local(TransformersAdapter, weights=str(repositories / "bert"))
    assert outcome["text"] == {"fingerprint": expected, "dim": 16}


def test_a_repository_that_has_only_pickles_is_loaded_from_them(outcome, repositories):
    assert outcome["text pickled"]["fingerprint"] == local(TransformersAdapter, weights=str(repositories / "pickled"))


def test_an_untrained_text_model_needs_no_weights_in_its_repository(outcome, repositories):
    expected = local(TransformersAdapter, weights=str(repositories / "config-only"), untrained=True)
    assert outcome["text untrained"]["fingerprint"] == expected


def test_nothing_is_downloaded_that_nobody_reads(session):
    unwanted = ("clip/open_clip_pytorch_model.bin", "bert/pytorch_model.bin", ".h5", ".onnx", ".fp16.safetensors")
    assert [file for file in session["asked"] if file.endswith(unwanted)] == []
    assert {"owner/clip/open_clip_model.safetensors", "owner/bert/model.safetensors"} <= set(session["asked"])


def test_nothing_is_downloaded_twice(session):
    assert len(session["asked"]) == len(set(session["asked"]))


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("clip at no revision", "hf-hub:owner/clip@v9"),
        ("clip without weights", "open_clip_model.safetensors"),
        ("clip unknown", "hf-hub:owner/nothing"),
        ("text unknown", "hf-hub:owner/nothing"),
    ],
)
def test_what_the_hub_does_not_have_is_named(outcome, case, named):
    assert outcome[case]["error"] == "ModelUnavailableError"
    assert named in outcome[case]["text"]


def test_without_the_hub_the_cache_is_enough(outcome):
    assert outcome["clip from the cache"] == outcome["clip"]
    assert outcome["text from the cache"] == outcome["text"]


def test_a_hub_that_cannot_be_reached_is_named_with_the_remedy(session):
    error = session["outcome"]["unreachable"]
    assert error["error"] == "ModelUnavailableError"
    assert session["endpoint"] in error["text"]
    assert "local folder" in error["text"]


def test_loading_shows_no_progress_bars(session):
    assert "it/s" not in session["log"]
    assert "%|" not in session["log"]


def test_untrained_weights_are_the_same_in_every_process(outcome):
    assert outcome["untrained"]["fingerprint"] == local(OpenClipAdapter, name="ViT-S-32-alt", untrained=True, seed=7)
