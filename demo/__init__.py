"""`make demo`: a real server, a real worker, a plain producer, and a table of what came back."""
