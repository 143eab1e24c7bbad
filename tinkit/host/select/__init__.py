"""Which pictures to label first: `tinkit select` (Cold PAWS, Mannix and Bondell 2023, arXiv 2305.10071)."""
