"""The matching service: scores on ciphertexts. Runs in the compute zone; reads the record, writes nothing.

shard       a gallery's groups in memory, kept up to date with the record
matcher     probes to encrypted scores
decider     encrypted scores to sealed decisions, by way of the key service
servicer    gRPC to the above; conversion between both
server      the process
"""
