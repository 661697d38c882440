"""The console: what a job is doing, as pages for a browser, served by the job's server or from its state folder."""
