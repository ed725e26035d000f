"""From files to sentences: what happens to a text before anything is embedded."""
