"""The stages: each is a module with `run(job)`, which returns an `Outcome`."""
