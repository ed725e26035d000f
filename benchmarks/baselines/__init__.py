"""The lane composed in other ways: servers with raglane's models, store and quality, to be compared with it."""
