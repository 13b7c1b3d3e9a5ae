"""The worker pool of the matching service: who holds which blocks, and scores them. Runs in the compute zone.

task        what is to be scored, and what comes of it
store       blocks in memory, loaded from the record, within a bound
scan        one pass over blocks, by a pool of threads
reserve     single-use zeros, drawn ahead
worker      a task to encrypted scores
pool        a task over many workers: scattered, gathered, done again where one is lost
remote      a worker behind gRPC
local       workers as processes of this machine
servicer    gRPC to a worker
server      the process of a worker
"""
