"""Adapters by name, from whatever packages are installed."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest

from legit_embedding.errors import ConfigurationError
from legit_embedding.models import registry as module
from legit_embedding.models.registry import GROUP, Registry
from legit_embedding.testing.model import FakeAdapter

FAKE = "legit_embedding.testing.model:FakeAdapter"


@pytest.fixture
def install(monkeypatch):
    """Installs entry points for this test alone, as (name, value) pairs."""

    def install(*pairs):
        found = EntryPoints(EntryPoint(name, value, GROUP) for name, value in pairs)
        monkeypatch.setattr(module, "entry_points", found.select)

    return install


def test_an_adapter_is_found_by_its_entry_point_and_made_once(install):
    install(("fake", FAKE))
    registry = Registry()
    assert isinstance(registry.adapter("fake"), FakeAdapter)
    assert registry.adapter("fake") is registry.adapter("fake")


def test_an_unknown_adapter_is_told_which_ones_there_are(install):
    install(("open_clip", FAKE), ("transformers", FAKE))
    with pytest.raises(ConfigurationError) as raised:
        Registry(extra={"extra": FakeAdapter}).adapter("onnx")
    assert str(raised.value) == "no adapter 'onnx' is installed; there are: extra, open_clip, transformers"


def test_a_name_that_two_packages_claim_is_refused(install):
    install(("clip", "one.package:Adapter"), ("clip", "another.package:Adapter"))
    with pytest.raises(ConfigurationError) as raised:
        Registry().adapter("clip")
    expected = "the adapter 'clip' is claimed by several packages: another.package:Adapter, one.package:Adapter"
    assert str(raised.value) == expected


def test_the_same_package_found_twice_on_the_path_is_no_conflict(install):
    install(("fake", FAKE), ("fake", FAKE))
    assert isinstance(Registry().adapter("fake"), FakeAdapter)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package.module:Adapter", "No module named 'no_such_package'"),
        ("legit_embedding.testing.model:NoSuchAdapter", "has no attribute 'NoSuchAdapter'"),
        ("broken_plugin:Adapter", "libcuda.so.1 is missing"),
    ],
)
def test_an_adapter_that_cannot_be_imported_says_which_and_why(install, monkeypatch, value, reason):
    broken = ModuleType("broken_plugin")

    def fail():
        raise OSError("libcuda.so.1 is missing")

    broken.Adapter = fail
    monkeypatch.setitem(sys.modules, "broken_plugin", broken)
    install(("plugin", value))
    with pytest.raises(ConfigurationError) as raised:
        Registry().adapter("plugin")
    assert str(raised.value).startswith(f"the adapter 'plugin' ({value}) cannot be imported: ")
    assert reason in str(raised.value)


def test_a_failed_import_is_tried_again(install):
    """The package may have been installed meanwhile."""
    install(("plugin", "no_such_package:Adapter"))
    registry = Registry()
    with pytest.raises(ConfigurationError):
        registry.adapter("plugin")
    install(("plugin", FAKE))
    assert isinstance(registry.adapter("plugin"), FakeAdapter)


def test_an_adapter_nobody_uses_is_not_imported(install):
    install(("fake", FAKE), ("plugin", "no_such_package:Adapter"))
    registry = Registry()
    assert registry.names() == ["fake", "plugin"]
    assert isinstance(registry.adapter("fake"), FakeAdapter)


def test_our_own_two_are_installed():
    assert {"open_clip", "transformers"} <= set(Registry().names())
