"""The edge service: embeds and encrypts for callers that cannot. Runs in the user's zone, keeps nothing.

faces       pictures to embeddings, one at a time
client      the client library within a caller's deadline, and what it says passed on
credential  what the service signs its requests with
galleries   the galleries it serves, opened once and looked at again
servicer    gRPC to the above; conversion between both
server      the process
"""
