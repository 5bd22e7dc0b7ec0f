"""For all tests."""

from hypothesis import settings

# No deadline: a loaded machine is no failure.
settings.register_profile("legit", deadline=None)
settings.load_profile("legit")
