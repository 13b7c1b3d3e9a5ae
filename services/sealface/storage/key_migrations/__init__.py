"""The history of the key's schema; `schema` brings a database up to date."""
