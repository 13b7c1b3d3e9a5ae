"""The enrollment service: galleries, subjects, templates; the only writer of the record. Runs in the compute zone.

record      writes: galleries, templates, blocks, erasures; one transaction each
rows        the statements those are made of
enroller    a ciphertext to a stored template
sealer      sealed blocks, made in the background
key_source  public material from the key service
servicer    gRPC to the above; conversion between both
server      the process
"""
