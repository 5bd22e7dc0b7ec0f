"""Canvases: what tasks call, and in which order."""

import pytest
from celery import chain, chord, group
from celery.canvas import chunks, xmap, xstarmap
from celery.exceptions import ChordError
from celery.result import result_from_tuple

from tests.conformance.conftest import PATIENCE_S, both_kinds, since


@pytest.fixture
def sign(shared, kind):
    """A signature of a task of this kind."""

    def signature(name, *args, **kwargs):
        return shared.signature(f"canvas.{name}", *args, kind=kind, **kwargs)

    return signature


@pytest.fixture
def other(shared, kind):
    """A signature of a task of the other kind: canvases mix them."""

    def signature(name, *args, **kwargs):
        return shared.signature(f"canvas.{name}", *args, kind="plain" if kind == "async" else "async", **kwargs)

    return signature


# -- forms -------------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_chain_hands_each_value_to_the_next(shared, sign, other):
    steps = chain(sign("add", 1, 1), other("add", 2), sign("double"), app=shared.app)
    result = steps.apply_async()
    assert result.get(timeout=PATIENCE_S) == 8
    assert (result.parent.get(timeout=PATIENCE_S), result.parent.parent.get(timeout=PATIENCE_S)) == (4, 2)


@both_kinds
def test_a_chain_ends_with_its_first_failure(shared, sign, other, key):
    result = chain(sign("add", 1, 1), sign("fail"), other("tell", key), app=shared.app).apply_async()
    with pytest.raises(KeyError, match="broken"):
        result.get(timeout=PATIENCE_S)
    assert result.parent.state == "FAILURE"
    assert shared.notes(key) == []


@both_kinds
def test_an_immutable_step_takes_no_value(shared, sign):
    steps = chain(sign("add", 1, 1), sign("add", 5, 5).set(immutable=True), app=shared.app)
    assert steps.apply_async().get(timeout=PATIENCE_S) == 10


@both_kinds
def test_a_group_returns_all_values_in_order(shared, sign, other):
    members = [task("add", number, 1) for number in range(10) for task in (sign, other)]
    result = group(members, app=shared.app).apply_async()
    assert result.get(timeout=PATIENCE_S) == [number for number in range(1, 11) for _ in range(2)]
    assert result.successful()


@both_kinds
def test_a_chord_hands_all_values_to_its_body(shared, sign, other):
    header = [task("add", number, number) for number in range(50) for task in (sign, other)]
    assert chord(header, app=shared.app)(sign("total")).get(timeout=PATIENCE_S) == 4900


@both_kinds
def test_map_calls_a_task_with_each_argument(shared, sign):
    assert xmap(sign("double"), range(5), app=shared.app).apply_async().get(timeout=PATIENCE_S) == [0, 2, 4, 6, 8]


@both_kinds
def test_starmap_calls_a_task_with_each_list_of_arguments(shared, sign):
    pairs = [(number, 1) for number in range(5)]
    assert xstarmap(sign("add"), pairs, app=shared.app).apply_async().get(timeout=PATIENCE_S) == [1, 2, 3, 4, 5]


@both_kinds
def test_chunks_call_a_task_with_so_many_at_a_time(shared, sign):
    pairs = [(number, 1) for number in range(5)]
    result = chunks(sign("add"), pairs, 2, app=shared.app).apply_async()
    assert result.get(timeout=PATIENCE_S) == [[1, 2], [3, 4], [5]]


# -- nested ------------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_group_within_a_chain_hands_its_values_on(shared, sign, other):
    inner = group(sign("add", 1), other("add", 2), app=shared.app)
    steps = chain(sign("add", 1, 1), inner, other("total"), sign("double"), app=shared.app)
    assert steps.apply_async().get(timeout=PATIENCE_S) == 14


@both_kinds
def test_chains_within_a_chord_hand_their_last_values_on(shared, sign, other):
    header = [chain(sign("add", number, 1), other("double"), app=shared.app) for number in range(4)]
    assert chord(header, app=shared.app)(sign("total")).get(timeout=PATIENCE_S) == 20


@both_kinds
def test_chords_within_a_chord_hand_the_values_of_their_bodies_on(shared, sign, other):
    header = [chord([sign("add", n, 1), other("add", n, 2)], sign("total"), app=shared.app) for n in range(3)]
    assert chord(header, app=shared.app)(other("total")).get(timeout=PATIENCE_S) == 15


@both_kinds
def test_a_chord_whose_body_is_a_chain_returns_the_value_of_its_last_step(shared, sign, other):
    body = chain(sign("total"), other("double"), app=shared.app)
    assert chord([sign("add", 1, 1), other("add", 2, 2)], app=shared.app)(body).get(timeout=PATIENCE_S) == 12


# -- callbacks ---------------------------------------------------------------------------------------------------------


@both_kinds
def test_the_callbacks_of_a_success_are_called_with_its_value(shared, sign, other, key):
    signature = sign("add", 1, 2)
    signature.link(sign("tell", key))
    signature.link(other("tell", key))
    assert signature.apply_async().get(timeout=PATIENCE_S) == 3
    assert shared.wait_for_notes(key, 2) == ["3", "3"]


@both_kinds
def test_the_callbacks_of_a_failure_are_called_with_its_request_and_exception(shared, sign, other, key):
    signature = sign("fail")
    signature.link_error(sign("tell_failure", key=key))
    signature.link_error(other("tell_failure", key=key))
    signature.link(sign("tell", key))
    result = signature.apply_async()
    assert shared.wait_for_notes(key, 2) == [f"{result.id} KeyError True"] * 2


@both_kinds
def test_the_callbacks_of_a_failure_in_the_old_form_are_called_with_its_id(shared, sign, other):
    signature = sign("fail")
    signature.link_error(sign("tell_failed_id"))
    result = signature.apply_async()
    assert shared.wait_for_notes(result.id, 1) == [result.id]


@both_kinds
def test_the_callbacks_of_a_failing_chain_are_called_with_the_step_that_failed(shared, sign, key):
    steps = chain(sign("add", 1, 1), sign("fail"), sign("double"), app=shared.app)
    result = steps.apply_async(link_error=sign("tell_failure", key=key))
    assert shared.wait_for_notes(key, 1) == [f"{result.parent.id} KeyError True"]


@both_kinds
def test_a_chord_whose_member_fails_fails_and_calls_the_callbacks_of_its_failure(shared, sign, other, key):
    body = sign("total").on_error(other("tell_failure", key=key))
    result = chord([other("add", 1, 1), sign("fail")], app=shared.app)(body)
    with pytest.raises(ChordError, match="broken"):
        shared.app.AsyncResult(result.id).get(timeout=PATIENCE_S)
    # No traceback: it did not happen in a body.
    assert shared.wait_for_notes(key, 1) == [f"{result.id} ChordError False"]


@pytest.mark.one_broker
@both_kinds
def test_a_chord_whose_member_exits_fails_and_calls_the_callbacks_of_both_failures(shared, kind, sign, other, key):
    member = shared.signature("outcomes.leave", "exit", kind=kind)
    member.link_error(sign("tell_failure", key=f"{key} member"))
    body = sign("total").on_error(sign("tell_failure", key=f"{key} chord"))
    result = chord([other("add", 1, 1), member], app=shared.app)(body)
    with pytest.raises(ChordError, match="WorkerLostError"):
        shared.app.AsyncResult(result.id).get(timeout=PATIENCE_S)
    assert shared.wait_for_notes(f"{key} chord", 1) == [f"{result.id} ChordError False"]
    (told,) = shared.wait_for_notes(f"{key} member", 1)
    assert told.split()[1] == "WorkerLostError"


@both_kinds
def test_a_chord_whose_body_fails_fails_and_calls_the_callbacks_of_its_failure(shared, sign, other, key):
    body = sign("fail").on_error(sign("tell_failure", key=key))
    result = chord([other("add", 1, 1), sign("add", 2, 2)], app=shared.app)(body)
    with pytest.raises(KeyError, match="broken"):
        result.get(timeout=PATIENCE_S)
    assert shared.wait_for_notes(key, 1) == [f"{result.id} KeyError True"]


# -- from inside a body ------------------------------------------------------------------------------------------------


@both_kinds
def test_what_a_body_and_its_children_send_are_its_children(shared, kind):
    result = shared.send("canvas.send", kind=kind)
    sent = result.get(timeout=PATIENCE_S)
    assert len(sent) == (4 if kind == "async" else 2)
    assert {child.id for child in result.children} == set(sent)
    for task_id in sent:
        assert shared.app.AsyncResult(task_id).get(timeout=PATIENCE_S) == [result.id, result.id]


FORMS = [("chain", 7), ("group", [1, 2, 3, 4]), ("chord", 10), ("nested", 14)]


@since((5, 7), "a client that finds a group done before it asked")
@both_kinds
@pytest.mark.parametrize(("form", "value"), FORMS, ids=[form for form, _ in FORMS])
def test_a_body_sends_a_canvas(shared, kind, form, value):
    sent = shared.send("canvas.send_canvas", form, kind=kind).get(timeout=PATIENCE_S)
    assert result_from_tuple(sent, app=shared.app).get(timeout=PATIENCE_S) == value


# -- replaced ----------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize(("form", "value"), [("task", 3), *FORMS], ids=["task", *(form for form, _ in FORMS)])
def test_a_task_that_replaces_itself_returns_the_value_of_its_replacement(shared, kind, form, value):
    assert shared.send("canvas.replace", form, kind=kind).get(timeout=PATIENCE_S) == value


@both_kinds
def test_a_replacement_replaces_itself(shared, kind):
    assert shared.send("canvas.replace_again", 3, kind=kind).get(timeout=PATIENCE_S) == 3


@both_kinds
def test_a_replacement_takes_the_place_of_its_task_in_a_chain(shared, sign, other):
    steps = chain(sign("add", 1, 1), sign("replace", "chain").set(immutable=True), other("double"), app=shared.app)
    assert steps.apply_async().get(timeout=PATIENCE_S) == 14


@both_kinds
def test_a_replacement_takes_the_place_of_its_task_in_a_chord(shared, sign, other):
    header = [sign("replace", "task"), sign("replace", "chord"), other("add", 1, 1)]
    assert chord(header, app=shared.app)(sign("total")).get(timeout=PATIENCE_S) == 15


@both_kinds
def test_a_replacement_calls_the_callbacks_of_its_task(shared, sign, other, key):
    replaced = sign("replace", "task")
    replaced.link(other("tell", key))
    assert replaced.apply_async().get(timeout=PATIENCE_S) == 3
    assert shared.wait_for_notes(key, 1) == ["3"]


@both_kinds
def test_a_member_adds_another_one_to_its_chord(shared, sign, other):
    header = [sign("join_chord", 1), other("add", 1, 1)]
    assert chord(header, app=shared.app)(sign("total")).get(timeout=PATIENCE_S) == 1 + 2 + 101
