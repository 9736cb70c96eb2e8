"""What every test starts from: engines are chosen by rank, and what is kept goes where the tests end."""

import os
import tempfile

# Before anything is imported, so that processes that tests start have it too.
os.environ["OSSICLE_MEASURE"] = "0"
os.environ["OSSICLE_CACHE"] = tempfile.mkdtemp(prefix="ossicle-tests-")
