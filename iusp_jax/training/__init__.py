"""One step, one engine, evaluation."""
