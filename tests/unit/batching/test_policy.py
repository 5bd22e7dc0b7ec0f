"""Who goes when: nothing is lost, bounds hold, and nobody waits behind another task's backlog."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.batching.policy import FairQueue, Ticket, Waiting
from legit_embedding.values import BatchLimits, Options, Prepared

LANE = "model"
FOUR = BatchLimits(4)


def waiting(tag, *, task="task", tokens=1, deadline_s=None, owner=None):
    ticket = Ticket(
        prepared=Prepared(data=tag, tokens=tokens, nbytes=1),
        options=Options(),
        task=task,
        tag=tag,
        deadline_s=deadline_s,
    )
    return Waiting(ticket, model=None, owner=owner or SimpleNamespace(withdrawn=False), queued_s=0.0)


def queue_of(*tickets, limits=FOUR, lane=LANE):
    queue = FairQueue()
    queue.put(lane, limits, tickets)
    return queue


def tags(batch):
    return [one.ticket.tag for one in batch]


def formed_tags(queue, now_s=0.0):
    """Every batch until nobody waits."""
    batches = []
    while (formed := queue.form(now_s)) is not None:
        batches.append(tags(formed.batch))
    return batches


def test_an_empty_queue_forms_nothing():
    assert FairQueue().form(0.0) is None


def test_a_batch_holds_what_waits_up_to_the_cap():
    queue = queue_of(*(waiting(number) for number in range(6)))
    assert formed_tags(queue) == [[0, 1, 2, 3], [4, 5]]


def test_tasks_take_turns_within_a_batch_and_the_turn_goes_on_in_the_next_one():
    queue = queue_of(*(waiting(f"{task}{number}", task=task) for task in "abc" for number in range(3)), limits=FOUR)
    assert formed_tags(queue) == [["a0", "b0", "c0", "a1"], ["b1", "c1", "a2", "b2"], ["c2"]]


def test_a_newcomer_of_one_item_is_in_the_next_batch_however_long_the_backlog_of_others_is():
    queue = queue_of(*(waiting(f"{task}{number}", task=task) for task in "abc" for number in range(1000)))
    queue.form(0.0)
    queue.put(LANE, FOUR, [waiting("search", task="search")])
    assert "search" in tags(queue.form(0.0).batch)


def test_bulk_fills_what_newcomers_leave():
    queue = queue_of(*(waiting(number, task="bulk") for number in range(10)), limits=FOUR)
    queue.put(LANE, FOUR, [waiting("search", task="search")])
    assert tags(queue.form(0.0).batch) == [0, "search", 1, 2]


def test_a_task_with_a_backlog_is_not_starved_by_an_endless_stream_of_newcomers():
    queue = queue_of(*(waiting(f"bulk{number}", task="bulk") for number in range(20)), limits=BatchLimits(2))
    newcomers = (waiting("new", task=f"new{number}") for number in itertools.count())
    served = []
    for _ in range(40):
        queue.put(LANE, BatchLimits(2), itertools.islice(newcomers, 2))
        served += tags(queue.form(0.0).batch)
    bulk = [tag for tag in served if tag != "new"]
    assert bulk == [f"bulk{number}" for number in range(len(bulk))]
    assert len(bulk) > 3


def test_a_batch_has_tickets_of_one_model_and_the_models_take_turns():
    queue = FairQueue()
    queue.put("a", FOUR, [waiting(f"a{number}", task="x") for number in range(8)])
    queue.put("b", FOUR, [waiting(f"b{number}", task="y") for number in range(8)])
    lanes = []
    while (formed := queue.form(0.0)) is not None:
        assert all(tag.startswith(formed.lane) for tag in tags(formed.batch))
        lanes.append(formed.lane)
    assert lanes == ["a", "b", "a", "b"]


def test_one_task_may_use_two_models():
    queue = FairQueue()
    queue.put("a", FOUR, [waiting("a0")])
    queue.put("b", FOUR, [waiting("b0")])
    assert formed_tags(queue) == [["a0"], ["b0"]]


def test_what_has_expired_is_told_and_not_computed():
    queue = queue_of(waiting("late", deadline_s=10.0), waiting("early", deadline_s=10.5), waiting("whenever"))
    formed = queue.form(10.0)
    assert (tags(formed.expired), tags(formed.batch)) == (["late"], ["early", "whenever"])


def test_where_everything_has_expired_nothing_is_computed_and_everybody_is_told():
    formed = queue_of(*(waiting(number, task=f"t{number}", deadline_s=1.0) for number in range(9))).form(2.0)
    assert (list(formed.batch), len(formed.expired)) == ([], 9)


def test_what_was_withdrawn_is_passed_over():
    gone = SimpleNamespace(withdrawn=False)
    queue = queue_of(waiting("a", owner=gone), waiting("b"), waiting("c", owner=gone))
    gone.withdrawn = True
    formed = queue.form(0.0)
    assert (tags(formed.batch), list(formed.expired), len(queue)) == (["b"], [], 0)


def test_a_padded_batch_stays_within_its_tokens_and_prefers_similar_lengths():
    queue = queue_of(*(waiting(tokens, tokens=tokens) for tokens in (10, 100, 11, 9, 90)), limits=BatchLimits(8, 33))
    assert tags(queue.form(0.0).batch) == [10, 11, 9]


def test_an_item_above_the_bound_of_tokens_goes_alone():
    queue = queue_of(waiting("huge", tokens=500), waiting("small", tokens=1), limits=BatchLimits(8, 100))
    assert formed_tags(queue) == [["huge"], ["small"]]


def test_a_task_that_was_passed_over_for_its_length_is_in_the_next_batch():
    """Each bulk task would fill a batch with texts as long as its first one, and no text is as short as the search."""
    limits = BatchLimits(4, 4000)
    queue = FairQueue()
    for tokens in (100, 200, 300):
        queue.put(LANE, limits, [waiting(tokens, task=f"bulk{tokens}", tokens=tokens) for _ in range(50)])
    queue.put(LANE, limits, [waiting("search", task="search", tokens=3)])
    assert [tags(queue.form(0.0).batch) for _ in range(2)] == [[100, 100, 100, 100], [200, 300, "search", 200]]


def test_drained_tickets_come_once_each_and_the_queue_is_empty():
    queue = queue_of(*(waiting(number, task=f"t{number % 3}") for number in range(10)))
    assert sorted(tags(queue.drain())) == list(range(10))
    assert (len(queue), queue.form(0.0)) == (0, None)


def test_running_out_of_memory_halves_the_cap_and_success_raises_it_one_by_one():
    queue = queue_of(limits=BatchLimits(16))
    queue.lower_cap(LANE, 16)
    assert queue.cap(LANE) == 8
    queue.raise_cap(LANE, 7)
    assert queue.cap(LANE) == 8
    for _ in range(20):
        queue.raise_cap(LANE, queue.cap(LANE))
    assert queue.cap(LANE) == 16


def test_the_cap_never_falls_below_one():
    queue = queue_of(limits=FOUR)
    queue.lower_cap(LANE, 1)
    assert queue.cap(LANE) == 1


def test_a_model_that_comes_back_with_other_limits_gets_their_cap():
    queue = queue_of(limits=FOUR)
    queue.lower_cap(LANE, 4)
    queue.put(LANE, BatchLimits(32), [])
    assert queue.cap(LANE) == 32


def test_tickets_that_cannot_be_compared_are_not_lost():
    """A plugin's bug: the error is raised, and who caught it can still tell everybody."""
    queue = queue_of(waiting("good", tokens=1), waiting("bad", tokens=None), limits=BatchLimits(4, 100))
    with pytest.raises(TypeError):
        queue.form(0.0)
    assert sorted(tags(queue.drain())) == ["bad", "good"]


tickets = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.integers(1, 60),
        st.sampled_from([None, 5.0, 15.0]),
        st.booleans(),
    ),
    max_size=80,
)
bounds = st.builds(BatchLimits, max_items=st.integers(1, 9), max_tokens=st.none() | st.integers(1, 200))


@given(tickets, bounds, st.integers(1, 5))
def test_everything_comes_out_once_and_every_batch_keeps_the_bounds(rows, limits, at_once):
    """Arrivals and batches interleave; a batch has at most `max_items`, and `max_tokens` once padded, or one item."""
    queue, owners, alive, late, batches = FairQueue(), {}, [], [], []

    def form():
        formed = queue.form(10.0)
        if formed is not None:
            late.extend(tags(formed.expired))
            batches.append(formed.batch)

    for number, (task, tokens, deadline_s, withdrawn) in enumerate(rows):
        owners[number] = SimpleNamespace(withdrawn=withdrawn)
        one = waiting(number, task=task, tokens=tokens, deadline_s=deadline_s, owner=owners[number])
        queue.put(LANE, limits, [one])
        if not withdrawn:
            alive.append(number)
        if number % at_once == 0:
            form()
    while len(queue):
        form()
    computed = [tag for batch in batches for tag in tags(batch)]
    assert sorted(computed + late) == alive
    assert all(rows[number][2] == 5.0 for number in late)
    for batch in batches:
        assert len(batch) <= limits.max_items
        padded = len(batch) * max((one.ticket.prepared.tokens for one in batch), default=0)
        assert limits.max_tokens is None or len(batch) == 1 or padded <= limits.max_tokens


@given(tickets, st.integers(1, 9))
def test_a_tasks_items_go_in_order_where_no_bound_of_tokens_picks_by_length(rows, cap):
    queue = queue_of(*(waiting(n, task=row[0]) for n, row in enumerate(rows)), limits=BatchLimits(cap))
    order = [tag for batch in formed_tags(queue) for tag in batch]
    for task in "abcdefgh":
        mine = [tag for tag in order if rows[tag][0] == task]
        assert mine == sorted(mine)


backlogs = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.integers(1, 60), min_size=1, max_size=90))


@given(backlogs, st.integers(1, 9), st.none() | st.integers(60, 600), st.integers(1, 60), st.integers(0, 5))
def test_a_newcomer_waits_for_tasks_and_never_for_their_backlogs(backlog, cap, max_tokens, tokens, before):
    """With n tasks in front of it: n // cap + 1 batches, or n + 1 where a bound of tokens picks by length.

    Where the bound is wide enough for one of each task, two batches do.
    """
    limits = BatchLimits(cap, max_tokens)
    queue = FairQueue()
    for task, lengths in backlog.items():
        queue.put(LANE, limits, [waiting(f"{task}{n}", task=task, tokens=each) for n, each in enumerate(lengths)])
    for _ in range(before):
        queue.form(0.0)
    ahead = len(backlog)
    queue.put(LANE, limits, [waiting("new", task="new", tokens=tokens)])
    wide_enough = max_tokens is not None and ahead < cap and max_tokens >= 60 * cap
    allowed = ahead // cap + 1 if max_tokens is None else 2 if wide_enough else ahead + 1
    served = [tags(queue.form(0.0).batch) for _ in range(allowed) if len(queue)]
    assert any("new" in batch for batch in served)


@given(st.integers(2, 5), st.integers(1, 7), st.integers(5, 20))
def test_tasks_that_always_have_work_get_equal_shares(tasks, cap, batches):
    queue = queue_of(
        *(waiting(task, task=str(task)) for task in range(tasks) for _ in range(200)), limits=BatchLimits(cap)
    )
    served = [tag for _ in range(batches) for tag in tags(queue.form(0.0).batch)]
    shares = [served.count(task) for task in range(tasks)]
    assert max(shares) - min(shares) <= 1
