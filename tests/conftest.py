"""What every test starts from: engines are chosen by rank, and what is kept goes where the tests end."""

import os
import tempfile

from hypothesis import HealthCheck, settings

# Before anything is imported, so that processes that tests start have it too.
os.environ["OSSICLE_MEASURE"] = "0"
os.environ["OSSICLE_CACHE"] = tempfile.mkdtemp(prefix="ossicle-tests-")
# Workers share the cores: with a thread of torch for each core, all of them wait for each other most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time; others with: pytest --hypothesis-profile explore
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")
