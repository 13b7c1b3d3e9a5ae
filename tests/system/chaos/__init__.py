"""Load on real services while each of their components is killed and comes back: nothing acknowledged is lost.

model       what is known of people, and what an answer says against it
load        clients that enrol, erase, verify and identify
components  what is killed, and comes back
scenario    components under load, and a settlement of accounts at the end
"""
