"""Shipped for tests: a clock moved by hand, a model without weights, servers, a slow network, a worker process."""
