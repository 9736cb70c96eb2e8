"""OpenAI-compatible HTTP over a session, and a page to try it. Its packages come with `pip install 'ossicle[server]'`."""
