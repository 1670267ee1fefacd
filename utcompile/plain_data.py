"""The type of data that JSON can say: manifests, reports, states of a run."""

from typing import Any

# what is in it is checked where it is read
JsonObject = dict[str, Any]
