"""On a real CUDA device, Ampere or later: the CPU's vectors, page-locked copies, and memory that comes back."""

import asyncio
import base64
import io
from collections import Counter

import numpy as np
import open_clip
import pytest
import redis
import torch
from celery import Celery
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sentence_transformers import SentenceTransformer

from legit_embedding.batching import Batcher, Ticket
from legit_embedding.clock import SystemClock
from legit_embedding.config import load_settings
from legit_embedding.contract import Names, parse_entry
from legit_embedding.errors import ConfigurationError
from legit_embedding.models.base import InputLimits
from legit_embedding.models.cache import ModelCache
from legit_embedding.models.catalog import Catalog, ModelSpec
from legit_embedding.models.clip import OpenClipAdapter
from legit_embedding.models.device import choose_device, release_cached
from legit_embedding.models.tensors import staging, to_device, to_host
from legit_embedding.models.text import TransformersAdapter
from legit_embedding.publish.reader import StreamReader
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.checkpoints import save_small_bert, save_small_eva02
from legit_embedding.testing.reports import NullReporter
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess
from legit_embedding.values import Options

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

DEVICE, CARD = "cuda", "cuda:0"
FULL_SIZE = {"name": "EVA02-B-16", "untrained": True}
LIMITS = InputLimits(max_pixels=50_000_000)
OPTIONS = Options()
EXACT, HALF = 0.9999, 0.999
PRECISIONS = [("float32", EXACT), ("bfloat16", HALF)]

LETTERS = "thequickbrownfoxjumpsoverlazydog"
TEXTS = [LETTERS[-length:] for length in range(1, 31)]
"""No two of a length; the small BERT has a token a letter."""


def load_clip(device=None, **entry):
    return OpenClipAdapter().load(ModelSpec(key="clip", adapter="open_clip", device=device or DEVICE, **entry), LIMITS)


def load_text(folder, device=None, **entry):
    spec = ModelSpec(key="text", adapter="transformers", weights=str(folder), device=device or DEVICE, **entry)
    return TransformersAdapter().load(spec, LIMITS)


def vectors(model, payloads):
    prepared = model.prepare(payloads, OPTIONS)
    return np.stack(model.finish(model.forward(prepared), [OPTIONS] * len(prepared)))


def cosines(ours, theirs):
    theirs = np.asarray(theirs, np.float64)
    return (ours * (theirs / np.linalg.norm(theirs, axis=1, keepdims=True))).sum(axis=1)


def picture(seed):
    """A JPEG of smooth colours with some noise on them."""
    random = np.random.default_rng(seed)
    size = 200 + 40 * (seed % 4), 260
    coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse) + random.normal(0, 12, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(4)]


def by_open_clip(model, transform, payloads):
    batch = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in payloads])
    with torch.inference_mode():
        return model.eval().encode_image(batch).float().numpy()


@pytest.fixture(scope="module")
def eva02_folder(tmp_path_factory):
    return save_small_eva02(tmp_path_factory.mktemp("eva02") / "model")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return save_small_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def reference(eva02_folder):
    """The small EVA02 and its transform as open_clip loads them, in float32 on the CPU."""
    return open_clip.create_model_from_pretrained(f"local-dir:{eva02_folder}", device="cpu")


# -- which device ------------------------------------------------------------------------------------------------------


def test_auto_takes_the_card_and_computes_in_bf16(eva02_folder):
    info = load_clip(device="auto", weights=str(eva02_folder)).info
    assert info.device in {f"cuda:{number}" for number in range(torch.cuda.device_count())}
    assert info.dtype == "bfloat16"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_card_can_be_named(bert_folder, name):
    info = load_text(bert_folder, device=name).info
    assert (info.device, info.dtype) == ("cuda:0", "bfloat16")


def test_a_card_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError) as raised:
        choose_device("cuda:99")
    assert str(raised.value) == f"device 'cuda:99' is not there: torch sees {torch.cuda.device_count()} cuda devices"


# -- between host and device -------------------------------------------------------------------------------------------


def test_what_is_copied_to_the_card_lies_in_page_locked_memory(eva02_folder, bert_folder, monkeypatch):
    """Otherwise no copy runs by itself."""
    made = []

    def watched(*args):
        made.append(staging(*args))
        return made[-1]

    monkeypatch.setattr("legit_embedding.models.clip.staging", watched)
    monkeypatch.setattr("legit_embedding.models.text.staging", watched)
    vectors(load_clip(weights=str(eva02_folder)), PICTURES)
    images = len(made)
    vectors(load_text(bert_folder), TEXTS)
    assert 0 < images < len(made)
    assert all(tensor.is_pinned() for tensor in made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_come_back_as_they_went(dtype):
    host = staging((3, 1000), dtype, CARD)
    host.copy_(torch.arange(3000).reshape(3, 1000) % 251)
    device = to_device(host, CARD)
    assert str(device.device) == CARD
    np.testing.assert_array_equal(to_host(device), np.arange(3000).reshape(3, 1000) % 251)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tower_is_given_open_clips_own_input(eva02_folder, reference, dtype):
    """Bit for bit, rounded to the model's dtype: the card normalises as the transform does on the CPU."""
    model = load_clip(weights=str(eva02_folder), dtype=str(dtype).removeprefix("torch."))
    _, transform = reference
    expected = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in PICTURES]).to(dtype)
    given = model.inputs(model.prepare(PICTURES, OPTIONS))
    assert str(given.device) == CARD
    assert torch.equal(given.cpu(), expected)


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "least"), PRECISIONS)
def test_a_small_eva02_gives_open_clips_vectors(eva02_folder, reference, dtype, least):
    ours = vectors(load_clip(weights=str(eva02_folder), dtype=dtype), PICTURES)
    assert cosines(ours, by_open_clip(*reference, PICTURES)).min() >= least


@pytest.fixture(scope="module")
def full_size_vectors():
    """What open_clip gives in float32 on the CPU with the seeded weights of ours."""
    model = open_clip.create_model("EVA02-B-16", device="cpu")
    model.visual.load_state_dict(load_clip(device="cpu", **FULL_SIZE, dtype="float32")._tower.state_dict())
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return by_open_clip(model, transform, PICTURES)


@pytest.mark.parametrize(("dtype", "least"), PRECISIONS)
def test_the_full_size_eva02_gives_open_clips_vectors(full_size_vectors, dtype, least):
    assert cosines(vectors(load_clip(**FULL_SIZE, dtype=dtype), PICTURES), full_size_vectors).min() >= least


@pytest.mark.parametrize(("dtype", "least"), PRECISIONS)
def test_a_small_bert_gives_the_vectors_of_sentence_transformers(bert_folder, dtype, least):
    """In one batch, so that all but one text are padded."""
    model = load_text(bert_folder, dtype=dtype)
    assert len({one.tokens for one in model.prepare(TEXTS, OPTIONS)}) == len(TEXTS)
    theirs = SentenceTransformer(str(bert_folder), device="cpu").encode(TEXTS)
    assert cosines(vectors(model, TEXTS), theirs).min() >= least


# -- memory ------------------------------------------------------------------------------------------------------------

MIB = 1024 * 1024
LIBRARIES = 256 * MIB
"""What cuBLAS and cuDNN keep for each thread that has used them; far less than the batches here take."""


@pytest.mark.parametrize("kind", ["clip", "text"])
def test_a_closed_model_gives_its_memory_back(bert_folder, kind):
    model = load_clip(**FULL_SIZE, dtype="float32") if kind == "clip" else load_text(bert_folder, dtype="float32")
    vectors(model, PICTURES if kind == "clip" else TEXTS)
    loaded = torch.cuda.memory_allocated()
    assert loaded >= model.info.nbytes
    model.close()
    assert torch.cuda.memory_allocated() <= loaded - model.info.nbytes


async def test_a_model_that_the_cache_unloads_gives_its_memory_back():
    """To the card, not only to torch: another process can have it."""
    reporter = NullReporter()
    cache = ModelCache(
        catalog=Catalog.parse(
            f'[models.clip]\nadapter = "open_clip"\nname = "{FULL_SIZE["name"]}"\nuntrained = true\n'
            f'device = "{DEVICE}"\ndtype = "float32"\n'
        ),
        settings=load_settings(),
        clock=SystemClock(),
        metrics=Metrics(),
        reporter=reporter,
    )
    async with cache:
        await cache.load("clip")
        (state,) = cache.statistics()
        assert state.device == CARD
        allocated, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
        await cache.unload("clip")
        assert torch.cuda.memory_allocated() <= allocated - state.nbytes
        assert torch.cuda.mem_get_info()[0] >= free + state.nbytes * 3 // 4
    assert reporter.errors == []


FULL_BATCH = 512
ROOM_PERCENT = 40
"""Of what a full batch takes: neither that nor its half fits, a quarter does."""


class Watched:
    """A model, and how many items each batch had that it was given."""

    def __init__(self, model):
        self.info = model.info
        self.finish = model.finish
        self.sizes = []
        self._forward = model.forward

    def forward(self, batch):
        self.sizes.append(len(batch))
        return self._forward(batch)


async def embedded(batcher, model, images, count):
    """The outcomes of `count` items, by number; item k is of image k % len(images)."""
    tickets = [Ticket(images[number % len(images)], OPTIONS, task="task", tag=number) for number in range(count)]
    outcomes = [(ticket.tag, outcome) async for part in batcher.submit(model, tickets) for ticket, outcome in part]
    assert sorted(tag for tag, _ in outcomes) == list(range(count))
    return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]


def assert_all_right(outcomes, expected):
    assert all(isinstance(outcome, np.ndarray) for outcome in outcomes)
    rows = np.arange(len(outcomes)) % len(expected)
    assert cosines(np.stack(outcomes), expected[rows]).min() >= HALF


async def room_at_once():
    return None


async def test_a_card_that_is_really_full_costs_nobody_a_vector():
    """Another tenant takes nearly all memory: batches shrink, every item has its vector, and nothing stays behind."""
    model = load_clip(**FULL_SIZE, dtype="bfloat16", max_items=FULL_BATCH)
    watched, reporter = Watched(model), NullReporter()
    images = model.prepare(PICTURES, OPTIONS)
    expected = vectors(model, PICTURES)
    async with Batcher(clock=SystemClock(), gate=room_at_once, metrics=Metrics(), reporter=reporter) as batcher:
        await embedded(batcher, watched, images, 1)  # on the batcher's own thread, which gets its own workspaces
        before = torch.cuda.memory_allocated()
        # Counted from behind the first convolution: cuDNN takes as much as it gets for it, and can do with less.
        hook = model._tower.trunk.patch_embed.register_forward_hook(lambda *_: torch.cuda.reset_peak_memory_stats())
        assert_all_right(await embedded(batcher, watched, images, FULL_BATCH), expected)
        hook.remove()
        assert watched.sizes == [1, FULL_BATCH]
        assert reporter.causes == []
        taken = torch.cuda.max_memory_allocated() - before

        release_cached(CARD)
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(free - taken * ROOM_PERCENT // 100, dtype=torch.uint8, device=DEVICE)
        assert_all_right(await embedded(batcher, watched, images, 2 * FULL_BATCH), expected)
        assert set(reporter.causes) == {"out-of-memory:clip"}
        watched.sizes.clear()
        assert_all_right(await embedded(batcher, watched, images, FULL_BATCH), expected)
        assert max(watched.sizes) <= FULL_BATCH // 2

        del ballast
        release_cached(CARD)
        heard = len(reporter.causes)
        full = [images[number % len(images)] for number in range(FULL_BATCH)]
        raw = await asyncio.to_thread(model.forward, full)
        assert_all_right(model.finish(raw, [OPTIONS] * FULL_BATCH), expected)
        assert_all_right(await embedded(batcher, watched, images, FULL_BATCH), expected)
        assert len(reporter.causes) == heard
    release_cached(CARD)
    assert torch.cuda.memory_allocated() <= before + LIBRARIES
    assert torch.cuda.mem_get_info()[0] >= free - LIBRARIES


# -- the whole worker --------------------------------------------------------------------------------------------------

TASKS = 200
STREAMS = ("cuda:a", "cuda:b")
IDENTITY = "cuda@test"


def produce(url):
    """Task id to (stream, payloads); every other task is of images."""
    sent = {}
    with Celery(broker=url, set_as_current=False) as app, app.producer_or_acquire() as producer:
        for number in range(TASKS):
            stream = STREAMS[number % 3 % 2]
            if number % 2:
                task, queue = "tasks.preparation.prepare_images", "image_preparation"
                payloads = [PICTURES[(number // 2 + place) % len(PICTURES)] for place in range(1 + number % 3)]
                items = [{"data": base64.b64encode(data).decode()} for data in payloads]
            else:
                task, queue = "tasks.text_embedding.embed_texts", "text_embedding"
                payloads = [TEXTS[(number + place) % len(TEXTS)] for place in range(1 + number % 5)]
                items = [{"text": text} for text in payloads]
            args = [{"items": items, "reply_to": stream}]
            sent[app.send_task(task, args=args, queue=queue, producer=producer).id] = stream, payloads
    return sent


def figures_of_the_worker(url, worker):
    """Its own, once they name the devices that have computed."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for _ in range(100):
            figures = client.hgetall(f"legit:worker:{IDENTITY}")
            if any(name.startswith("busy_share:") for name in figures):
                return figures
            worker.wait(0.1)
    raise AssertionError(f"the worker's figures name no device: {figures}\n{worker.log[-4000:]}")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, eva02_folder, bert_folder):
    """Everything is queued first, then one worker takes it: what was sent, what came, and what the worker tells."""
    path = tmp_path_factory.mktemp("models") / "models.toml"
    path.write_text(
        f'[defaults]\nimage = "clip"\ntext = "bert"\n'
        f'[models.clip]\nadapter = "open_clip"\nweights = "{eva02_folder}"\ndevice = "{DEVICE}"\ndtype = "bfloat16"\n'
        f'[models.bert]\nadapter = "transformers"\nweights = "{bert_folder}"\ndevice = "{DEVICE}"\ndtype = "bfloat16"\n'
    )
    with EmbeddedServer() as server:
        sent = produce(server.url())
        env = {"LEGIT_BROKER_URL": server.url(), "LEGIT_MODELS": str(path), "LEGIT_WORKER_ID": IDENTITY}
        env |= {"LEGIT_STATS_INTERVAL_S": "0.5", "LEGIT_PRELOAD": "defaults"}
        with WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env) as worker:
            with StreamReader(server.url()) as reader:
                expected = sum(len(payloads) for _, payloads in sent.values())
                found = reader.read(dict.fromkeys(STREAMS, "0"), expected=expected, timeout_s=60)
                names = Names.load(None)
                arrived = [(stream, parse_entry(fields, names=names)) for stream, _, fields in found]
            figures = figures_of_the_worker(server.url(), worker)
            code = worker.stop()
        with StreamReader(server.url()) as reader:
            late = sum(1 for _ in reader.read(dict.fromkeys(STREAMS, "0"), timeout_s=1)) - len(arrived)
        yield {
            "sent": sent, "arrived": arrived, "late": late, "figures": figures, "code": code, "log": worker.log,
        }  # fmt: skip


def test_every_item_comes_exactly_once_on_the_stream_its_task_named(outcome):
    counts = Counter((stream, entry.task_id, entry.index) for stream, entry in outcome["arrived"])
    sent = outcome["sent"].items()
    assert set(counts) == {(stream, id_, index) for id_, (stream, items) in sent for index in range(len(items))}
    assert set(counts.values()) == {1}
    assert outcome["late"] == 0
    assert outcome["code"] == 0


def test_the_workers_vectors_are_those_of_the_cpu(outcome, eva02_folder, bert_folder):
    models = {
        "image": (load_clip(device="cpu", weights=str(eva02_folder), dtype="float32"), PICTURES),
        "text": (load_text(bert_folder, device="cpu", dtype="float32"), TEXTS),
    }
    expected = {
        payload: vector
        for model, payloads in models.values()
        for payload, vector in zip(payloads, vectors(model, payloads), strict=True)
    }
    entries = [entry for _, entry in outcome["arrived"]]
    assert {(entry.status, entry.dtype) for entry in entries} == {("ok", "bfloat16")}
    for modality in models:
        some = [entry for entry in entries if entry.modality == modality]
        theirs = [expected[outcome["sent"][entry.task_id][1][entry.index]] for entry in some]
        assert cosines(np.stack([entry.embedding for entry in some]), theirs).min() >= HALF


def test_the_worker_says_which_card_has_computed(outcome):
    assert f"busy_share:{CARD}" in outcome["figures"]
    assert outcome["log"].count(f"on {CARD} in bfloat16") == 2
