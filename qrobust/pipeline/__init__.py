"""Everything that knows a run folder."""
