"""The key service: secret keys, policies, callers, decisions. Runs in the key zone, apart from compute.

wrapping    secrets at rest: AES-256-GCM data keys under a pluggable key-encryption key
keyring     keys and their versions
lifecycle   what becomes of versions: disabled, in quarantine, destroyed
callers     who may ask, and proof that they did
operator    methods that only an operator may call
judge       a signed request and encrypted results to a sealed decision
renewal     blinded blocks and templates to fresh encryptions
messages    the contract's messages to the types of the above, and back
servicer    gRPC to the above
server      the process
"""
