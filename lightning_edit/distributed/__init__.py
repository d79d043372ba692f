"""Data-parallel evaluation and editing: work sharding, all-gather, sharded weights."""
