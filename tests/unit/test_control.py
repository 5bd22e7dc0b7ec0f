"""Remote control: what an operator is told of a switch that was not confirmed."""

from types import SimpleNamespace

import pytest

from legit_embedding import control, runtime
from legit_embedding.publish.errors import ResultServerError


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(), "no answer within 5 s"), (ResultServerError("refused"), "refused")]
)
def test_a_switch_without_an_answer_is_not_called_unchanged(monkeypatch, error, reason):
    def fail(*_):
        raise error

    worker = SimpleNamespace(switch=SimpleNamespace(set=lambda _: None), loop=None)
    monkeypatch.setattr(runtime, "current", lambda: worker)
    monkeypatch.setattr(control, "_on_loop", fail)
    assert control.reply_to_routing(None, "off") == {
        "error": f"reply_to_routing off is not confirmed by the result server: {reason}"
    }
