"""Many runs from one plan: networks x targets x shifts x seeds, each an ordinary run folder."""
