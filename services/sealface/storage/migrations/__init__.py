"""The history of the record's schema; `schema` brings a database up to date."""
