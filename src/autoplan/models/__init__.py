"""Model factories that the demos, the plans and the tests use; each `build(...)` returns (module, args, kwargs)."""
