"""The matching service: scores on ciphertexts. Runs in the compute zone; reads the record, writes nothing.

shard       a gallery's blocks in memory, kept up to date with the record
scan        one pass over them, by a pool of threads
reserve     single-use zeros, drawn ahead
matcher     probes to encrypted scores
feed        results from those threads to the calls that wait for them
decider     encrypted scores to sealed decisions, by way of the key service
servicer    gRPC to the above; conversion between both
server      the process
"""
