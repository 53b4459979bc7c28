"""What holds for every test.

Hypothesis runs without its deadline: a busy machine must not fail a test that asserts no time.
Under CI it draws the same examples each time, so that a red run can be repeated; everywhere else
each run draws new ones.
"""

import os

from hypothesis import settings

settings.register_profile("new-examples", deadline=None)
settings.register_profile("same-examples", deadline=None, derandomize=True)
settings.load_profile("same-examples" if os.environ.get("CI") else "new-examples")
