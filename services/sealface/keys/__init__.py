"""The key service: secret keys, policies, callers, decisions. Runs in the key zone, apart from compute.

policy      the rule of decisions
decision    distances to a decision under a policy
wrapping    secrets at rest: AES-256-GCM data keys under a pluggable key-encryption key
store       the key zone's record
keyring     keys and their versions
callers     who may ask, and proof that they did
judge       a signed request and encrypted results to a sealed decision
servicer    gRPC to the above; conversion between both
server      the process
"""
