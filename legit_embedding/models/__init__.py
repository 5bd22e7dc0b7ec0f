"""Models: declared in `models.toml`, loaded once by a plugin's adapter, kept in one cache for the whole process."""
