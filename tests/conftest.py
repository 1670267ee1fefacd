"""Shared by all tests: the helpers beside this file can be imported, and torch uses the machine's two cores."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
