"""What a run's numbers say is wrong: health rules (``health.py``); why sampler and trainer differ (``mismatch.py``)."""
