"""Checkpoint files: read without running anything, refused with the setting that would change that."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from legit_embedding.errors import ConfigurationError, ModelUnavailableError
from legit_embedding.models.weights import digest_of, read_state

STATE = {"visual.a": torch.arange(3.0), "text.b": torch.ones(2)}


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_of_safetensors_only_what_is_wanted_is_read(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert set(read_state(tmp_path / "w.safetensors", trust_pickle=False, prefix="visual.")) == {"visual.a"}


def test_everything_is_read_where_no_name_has_the_prefix(tmp_path):
    """It may be a checkpoint in another project's form, to be converted."""
    save_file(STATE, tmp_path / "w.safetensors")
    assert set(read_state(tmp_path / "w.safetensors", trust_pickle=False, prefix="image.")) == set(STATE)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"epoch": 3, "state_dict": STATE},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
    ],
    ids=["plain", "training", "distributed"],
)
@pytest.mark.parametrize("new_zipfile", [True, False])
def test_a_pickle_of_tensors_is_read_however_it_is_wrapped(tmp_path, content, new_zipfile):
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new_zipfile)
    state = read_state(tmp_path / "w.pt", trust_pickle=False)
    assert set(state) == set(STATE)
    assert torch.equal(state["visual.a"], STATE["visual.a"])


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": STATE, "more": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    with pytest.raises(ConfigurationError, match=r"w\.pt.*trust_pickle = true"):
        read_state(tmp_path / "w.pt", trust_pickle=False)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the trap's own
def test_a_pickle_that_runs_code_is_loaded_once_it_is_trusted(tmp_path):
    torch.save({"state_dict": STATE, "more": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    assert set(read_state(tmp_path / "w.pt", trust_pickle=True)) == set(STATE)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"neither the one nor the other"])
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ModelUnavailableError, ConfigurationError), match=name):
        read_state(tmp_path / name, trust_pickle=False)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelUnavailableError, match=r"nowhere\.pt"):
        read_state(tmp_path / "nowhere.pt", trust_pickle=False)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}])
def test_a_pickle_without_weights_is_no_checkpoint(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(b"")
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelUnavailableError, match=r"w\.pt"):
        read_state(tmp_path / "w.pt", trust_pickle=False)


def test_a_digest_follows_the_content_and_not_the_name(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(pickle.dumps([1]))
    second.write_bytes(pickle.dumps([1]))
    assert digest_of([first]) == digest_of([second])
    second.write_bytes(pickle.dumps([1, 2]))
    assert digest_of([first]) != digest_of([second])
    assert digest_of([first, second]) not in {digest_of([first]), digest_of([second])}
