"""Settings for all tests."""

import os
import signal

from hypothesis import settings

# Before anything imports Ray, which reads them then: no test reports home, and each Ray asks for a token.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would the jobs that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine makes single examples slow by chance; failures must come from the code alone.
settings.register_profile("fer_ray", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fer_ray")
