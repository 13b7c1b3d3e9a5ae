"""The key service: secret keys, policies, callers, decisions. Runs in the key zone, apart from compute.

providers   where the key-encryption key is: a file, the environment, a plug-in
transit     … Vault's or OpenBao's Transit engine
recovery    the key that is kept offline for when that is lost
wrapping    secrets at rest: AES-256-GCM data keys under the key-encryption key
rewrap      all of them under another one
sealed      without it: the service waits, and unseals by itself
backup      the database to a file, and back
occupancy   one process at a time
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
