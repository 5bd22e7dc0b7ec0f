"""Finished entries onto their streams, confirmed: routing, group commit, retry, back-pressure; and the way back."""
