"""What developers of utcompile run; no part of the wheel."""
