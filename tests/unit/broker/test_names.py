"""The names of the keys on the server."""

from legit_embedding.broker.names import Keys


def keys(prefix="", unacked="unacked"):
    return Keys.create(prefix=prefix, unacked=unacked, index="unacked_index", mutex="unacked_mutex")


def test_kombus_names_are_as_its_options_say_where_there_is_no_prefix():
    assert (keys().unacked, keys().index, keys().mutex) == ("unacked", "unacked_index", "unacked_mutex")
    assert keys().of("celery\x06\x163") == "celery\x06\x163"


def test_ours_stand_beside_kombus_and_are_none_of_them():
    own = keys()
    ours = {own.leases, own.deliveries, own.owner("a")}
    assert ours == {"unacked_leases", "unacked_deliveries", "unacked_lease.a"}
    assert ours.isdisjoint({own.unacked, own.index, own.mutex})


def test_no_line_can_be_named_so_that_its_hash_is_another_of_our_keys():
    own = keys()
    assert not own.leases.startswith(own.owners)
    assert not own.deliveries.startswith(own.owners)
    assert own.owner("line") == f"{own.owners}line"


def test_the_global_prefix_is_in_front_of_every_name():
    own = keys(prefix="shop:")
    names = [own.unacked, own.index, own.mutex, own.leases, own.owners, own.owner("a"), own.deliveries, own.of("q")]
    assert all(name.startswith("shop:") and name.count("shop:") == 1 for name in names)


def test_our_names_keep_the_hash_tag_of_a_cluster():
    own = keys(unacked="{queue}unacked")
    assert all("{queue}" in name for name in (own.leases, own.owner("a"), own.deliveries))


def test_equal_options_are_the_same_keys_whoever_asks():
    assert len({keys(), keys(), keys(prefix="other:")}) == 2
