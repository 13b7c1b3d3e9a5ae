"""The enrollment service: galleries, subjects, templates; the only writer of the record. Runs in the compute zone.

record              writes: galleries, templates, blocks, erasures; one transaction each
rows                the statements those are made of
enroller            a ciphertext to a stored template
operations, leases  long work, stored; one process at a time on a gallery
housekeeper         what goes on in the background
sealer, erasure     sealed blocks, made and made again; erasures, seen through
invalidation        what is erased leaves Redis
key_source          public material from the key service, and its part in renewing blocks
renewals, exchange  blocks renewed by the client that holds the key
servicer            gRPC to the above; conversion between both (operation_servicer: operations)
server              the process
"""
