"""Sealface: face recognition as a suite of gRPC services that never sees a face."""
