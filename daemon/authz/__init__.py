"""The authorisation endpoint: answers a gateway's 'may this principal, this client pass?' on every request.

`keys` (API key to key id), `decision` (principals to an answer), `server` (HTTP), `health` (counters). It holds no
privilege, decides by the enforcer's deny list alone, and imports nothing heavy.
"""
