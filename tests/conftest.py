"""What holds for every test.

Hypothesis runs without its deadline: a busy machine must not fail a test that asserts no time.
"""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
