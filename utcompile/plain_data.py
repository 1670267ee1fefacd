"""The types of data whose kinds are known at run time: what JSON can say, and keyword arguments that are collected."""

from typing import Any

# what is in it is checked where it is read
JsonObject = dict[str, Any]
# what the function that takes them checks
Keywords = dict[str, Any]
