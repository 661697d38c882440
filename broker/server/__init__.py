"""The server of a job: it opens rounds, closes them into the journal, and keeps devices up to date."""
