"""What a worker tells of itself: its identity, metrics, figures in Redis, error reports."""
