"""What an acceptance test needs: the project's own checkpoints, a models.toml that names them, and a server."""

import pytest
import redis

from legit_embedding.testing.checkpoints import minilm_folder, save_small_eva02
from legit_embedding.testing.server import EmbeddedServer
from tests.acceptance.site import Site


@pytest.fixture(scope="session")
def models_toml(tmp_path_factory):
    """A small seeded EVA02 through the real checkpoint path, and MiniLM with its real weights."""
    folder = tmp_path_factory.mktemp("models")
    image = save_small_eva02(folder / "eva02")
    path = folder / "models.toml"
    path.write_text(
        f'[defaults]\nimage = "clip"\ntext = "minilm"\n\n[models.clip]\nadapter = "open_clip"\n'
        f'weights = "{image}"\n\n[models.minilm]\nadapter = "transformers"\nweights = "{minilm_folder()}"\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def server():
    """A server for one module's workers."""
    with EmbeddedServer() as own:
        yield own


@pytest.fixture(scope="module")
def client(server):
    """A plain client of that server."""
    with redis.Redis.from_url(server.url(), decode_responses=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def site(server):
    """A producer and a reader on that server."""
    return Site(server.url())
