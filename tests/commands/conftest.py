from tiny_run import tiny, tiny_data  # noqa: F401
