"""Data: a spec string in, four disjoint seeded splits of decoded images out."""
