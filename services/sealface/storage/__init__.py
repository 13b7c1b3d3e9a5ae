"""Records of truth in SQL: what the key zone keeps and what the compute zone keeps, in databases of their own."""
