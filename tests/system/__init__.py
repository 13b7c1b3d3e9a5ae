"""The system as it runs: real processes, real encryption."""
