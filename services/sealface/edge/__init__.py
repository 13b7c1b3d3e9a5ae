"""The edge service: embeds and encrypts for callers that cannot. Runs in the user's zone, keeps nothing."""
