"""demo stub for now."""
EXAMPLES = ""
def demo() -> None:
    """x"""
