"""What zones say to each other, independent of transport; each rule stands here once, for clients and services.

names       resource names
signing     callers' credentials, and what is signed with them
sealing     boxes that only a caller can open
policy      the rule of decisions
scores      encrypted scores to distances by slot
decision    distances to a decision under a policy
convert     the contract's messages to the types of `cipher` and of this package, and back
"""
